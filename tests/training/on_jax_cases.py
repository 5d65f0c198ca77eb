"""A small loop under JAX, for processes without TensorFlow; see on_jax_test.py."""

import keras

from convbert_tf import config
from convbert_tf.modeling import masking
from convbert_tf.modeling.pretraining import ConvBertPretrainer, PretrainingTask
from convbert_tf.training import on_jax, optimization


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
        num_train_steps=24, steps_per_loop=4, checkpoint_interval=8, batch_size=8
    )
    keras.utils.set_random_seed(1)
    pretrainer = ConvBertPretrainer(model)
    task = PretrainingTask(pretrainer, masking.special_tokens(records.vocab), None)
    optimizer = optimization.create(training, training.num_train_steps)
    stateless = on_jax.Stateless(pretrainer, optimizer, on_jax.loss_of(task))
    return on_jax.Loop(task, stateless, records, training)
