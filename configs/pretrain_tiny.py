r"""A tiny ConvBERT for two CPU cores: 1,510,301 parameters with its generator.

What tools/quickstart.sh pre-trains in a few minutes. The architecture is ours: medium-small's in
miniature, with four layers, four heads and two linear groups.

    python tools/pretrain.py --config=configs/pretrain_tiny.py --config.data.train_dir=... \
        --config.data.eval_dir=... --config.training.model_dir=runs/tiny
"""

from convbert_tf import config


def get_config():
    return config.to_config_dict(
        config.PretrainingExperiment(
            model=config.ModelConfig(
                vocab_size=6000,
                hidden_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=512,
                embedding_size=128,
                linear_groups=2,
                max_position_embeddings=512,
                generator_hidden_size=0.5,
                mask_convolution=True,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            data=config.DataConfig(max_seq_length=128),
            training=config.TrainingConfig(
                batch_size=32,
                learning_rate=1e-3,
                num_train_steps=550,
                warmup_steps=100,
                steps_per_loop=50,
                eval_interval=275,
                num_eval_steps=20,
                checkpoint_interval=275,
            ),
        )
    )
