"""A small loop under JAX, for processes without TensorFlow; see on_jax_test.py."""

from convbert_tf import config
from convbert_tf.training import on_jax


def make_loop(path):
    records = on_jax.Records(path)
    model = config.ModelConfig(
        vocab_size=len(records.vocab),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        embedding_size=16,
        max_position_embeddings=32,
        generator_hidden_size=0.5,
    )
    training = config.TrainingConfig(
        num_train_steps=24, steps_per_loop=4, checkpoint_interval=8, batch_size=8, seed=1
    )
    data = config.DataConfig(max_seq_length=24)
    experiment = config.PretrainingExperiment(model=model, data=data, training=training)
    return on_jax.make_loop(experiment, records)
