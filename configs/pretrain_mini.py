r"""A ConvBERT to compare with others on two processor cores: 4.4 million parameters.

The largest that an hour trains well there; the small config's recipe with its learning rate and
batch brought to that length. tools/evidence.py takes it, and docs/results.md tells how it was
chosen.

    python tools/pretrain.py --config=configs/pretrain_mini.py \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/mini
"""

from convbert_tf import config


def get_config():
    return config.to_config_dict(
        config.PretrainingExperiment(
            model=config.ModelConfig(
                vocab_size=8_000,
                hidden_size=192,
                num_hidden_layers=6,
                num_attention_heads=4,
                intermediate_size=768,
                embedding_size=128,
                generator_hidden_size=0.5,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                mask_convolution=True,
            ),
            data=config.DataConfig(max_seq_length=128),
            training=config.TrainingConfig(
                batch_size=32,
                learning_rate=1e-3,
                num_train_steps=6_000,
                warmup_steps=500,
                steps_per_loop=50,
                eval_interval=1_000,
                num_eval_steps=50,
                checkpoint_interval=500,
            ),
        )
    )
