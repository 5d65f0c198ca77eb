r"""ConvBERT small: 14,019,903 parameters with its generator.

Settings of the paper (section 5.1) and of the original code: length 128, batch 128, one million
steps; --config.training.num_train_steps=4000000 gives the longer run of the paper.

    python tools/pretrain.py --config=configs/pretrain_small.py \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/small
"""

from convbert_tf import config


def get_config():
    return config.to_config_dict(
        config.PretrainingExperiment(
            model=config.ModelConfig.small(mask_convolution=True),
            data=config.DataConfig(max_seq_length=128),
            training=config.TrainingConfig(
                batch_size=128,
                learning_rate=3e-4,
                num_train_steps=1_000_000,
                warmup_steps=10_000,
                eval_interval=10_000,
                num_eval_steps=100,
            ),
        )
    )
