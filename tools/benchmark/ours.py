"""The benchmark's workers that run this package, on TensorFlow or (KERAS_BACKEND=jax) on JAX.

TensorFlow is imported only inside functions of the TensorFlow path. What a worker is and how it is
talked to stands in benchmark_workers.py.
"""

import functools
import os
import tempfile

import keras
from keras import ops

from convbert_tf.config import (
    FinetuningExperiment,
    ModelConfig,
    PretrainingConfig,
    TaskConfig,
    TrainingConfig,
    finetuning_defaults,
)
from convbert_tf.modeling import functions, masking
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.functions import cut, gelu
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.modeling.layers import SpanDynamicConvolution
from convbert_tf.modeling.linear import Dense, GroupedDense, LayerNormalization
from convbert_tf.modeling.pretraining import ConvBertPretrainer, PretrainingTask
from convbert_tf.training import optimization
from tools.benchmark.workers import Ready, make_batch, repeat, serve

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
SPECIAL_TOKENS = masking.SpecialTokens(cls=101, sep=102, mask=103)


def _set_up(work, precision=None):
    """Threads, seed and the precision of models and steps."""
    keras.utils.set_random_seed(0)
    if precision or work["precision"] != "float32":
        keras.config.set_dtype_policy(precision or f"mixed_{work['precision']}")
    if ON_TENSORFLOW:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(work.get("intra", work["threads"]))
        tf.config.threading.set_inter_op_parallelism_threads(work["threads"])


def _batch(work):
    batch = make_batch(work["config"]["vocab_size"], work["batch"], work["length"])
    return {name: ops.convert_to_tensor(value) for name, value in batch.items()}


# --- one function, compiled ---


def forward(work):
    """The encoder's output, without dropout; weights of the precision's type, as constants."""
    _set_up(work, work["precision"])
    encoder, batch = ConvBertEncoder(ModelConfig.from_dict(work["config"])), _batch(work)
    for i, weight in enumerate(encoder.weights):
        if len(weight.shape) == 1:  # else a graph drops biases of 0 and scales of 1
            weight.assign(weight + 0.02 * keras.random.normal(weight.shape, seed=i))
    compute = encoder
    if ON_TENSORFLOW:
        from convbert_tf.serving.inference import freeze

        compute = freeze(encoder)

    step = _compiled(encoder, lambda batch: compute(batch)["sequence_output"], batch)
    return Ready(repeat(step), encoder.count_params(), device_peak=_device_peak)


def make_runtime(work):
    """Writes the LiteRT directory `model` of an encoder, which gives the mean of its output."""
    _set_up(work, "float32")
    from convbert_tf import serving

    config = ModelConfig.from_dict(work["config"])
    with tempfile.TemporaryDirectory() as folder:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(config.vocab_size))]
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(names[: config.vocab_size]) + "\n")
        preset = os.path.join(folder, "preset")
        ConvBertEncoder(config).save_to_preset(preset, os.path.join(folder, "vocab.txt"))
        precision = "float32" if work["precision"] == "float32" else "int8"
        options = {"serve": "embedding", "max_seq_length": work["length"]}
        serving.export_litert(preset, work["model"], precision, **options)
    return Ready(lambda n: None)


def matrix_product(work):
    """A product of two square matrices of `size`, by which the machine's rate is known."""
    _set_up(work)
    shape = (work["size"], work["size"])
    a, b = (ops.cast(keras.random.normal(shape, seed=i), work["precision"]) for i in range(2))
    step = _compiled(None, lambda pair: ops.matmul(*pair), (a, b))
    return Ready(repeat(step))


def _compiled(model, function, inputs):
    """function(inputs) in a graph; a call of the result computes it and waits."""
    if ON_TENSORFLOW:
        import tensorflow as tf

        graph = tf.function(function, autograph=False)

        def step():
            graph(inputs)
            tf.test.experimental.sync_devices()

        return step
    import jax

    variables = model.variables if model else []

    @jax.jit
    def stateless(values, inputs):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(inputs)

    values = [variable.value for variable in variables]
    return lambda: jax.block_until_ready(stateless(values, inputs))


def _device_peak():
    """Peak bytes of the accelerator's memory; 0 where there is none or it does not tell."""
    if ON_TENSORFLOW:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


# --- steps of training ---


def finetuning_step(work):
    """A step of a classifier with Hugging Face's head: forward, backward, clipping, AdamW."""
    _set_up(work)
    encoder = ConvBertEncoder(ModelConfig.from_dict(work["config"]))
    model = TextClassifier(encoder, num_classes=2, hidden_layer=True)
    batch = _batch(work)
    batch["label_ids"] = ops.convert_to_tensor([i % 2 for i in range(work["batch"])])
    if ON_TENSORFLOW:
        from convbert_tf.workflows.finetuning import FinetuningTask

        return _trained(FinetuningTask(model, _repeated(batch)), work)

    def loss(batch):
        return ops.sum(model.example_losses(model(batch, training=True), batch))

    return _trained_on_jax(model, loss, batch, work)


def pretraining_step(work):
    """A step of pre-training; `structure` "losses" or "all" is composed as the original's.

    With "all" so is the optimiser: an update is a dozen operations a weight.
    """
    _set_up(work)
    cls = {
        "ours": ConvBertPretrainer,
        "losses": OriginalStructure,
        "all": functools.partial(OriginalStructure, layers=True),
    }[work["structure"]]
    model = cls(ModelConfig.from_dict(work["config"]), PretrainingConfig())
    batch = _batch(work)
    batch["uniforms"] = keras.random.uniform((work["batch"], 3, work["length"]), seed=1)
    task = PretrainingTask(model, SPECIAL_TOKENS, _repeated(batch))
    if ON_TENSORFLOW:
        return _trained(task, work, fused=work["structure"] != "all")

    def loss(batch):
        inputs, weights = task.prepare(batch)
        terms, _ = task.losses(inputs, training=True)
        return functions.total_loss(terms, weights)

    return _trained_on_jax(model, loss, batch, work)


class OriginalStructure(ConvBertPretrainer):
    """The pre-training step as the original composes it, with our weights.

    Positions are gathered by a product with one-hot vectors [B, M, T]; labels are one-hot
    [B, M, V]; the vocabulary goes through a log-softmax for the loss and through a softmax for
    sampling, which adds Gumbel noise [B, M, V] and takes the largest, again as one-hot vectors.
    With `layers` the encoders are the original's too: the convolution is a product of its kernels
    with K shifted copies of the values, and all gradients are traced.
    """

    def __init__(self, config, pretraining=None, layers=False, **kwargs):
        super().__init__(config, pretraining, **kwargs)
        self.noise = keras.random.SeedGenerator(0)
        for layer in self._flatten_layers() if layers else ():
            if isinstance(layer, SpanDynamicConvolution):
                layer.convolve = functools.partial(_unfolded_convolution, layer)
            elif isinstance(layer, LayerNormalization):
                layer.call = functools.partial(_traced_layer_norm, layer)
            elif isinstance(layer, Dense | GroupedDense) and layer.activation is gelu:
                layer.activation = functools.partial(keras.activations.gelu, approximate=False)

    def mlm_logits(self, features, masked, training=False):
        inputs = features | {"input_ids": masked.masked_input_ids}
        hidden = self.generator(inputs, training=training)["sequence_output"]
        length = features["input_ids"].shape[1]
        chosen = ops.one_hot(masked.masked_lm_positions, length, dtype=hidden.dtype)
        table = self.generator.embeddings.word_embeddings
        return ops.cast(self.generator_head(ops.matmul(chosen, hidden), table), "float32")

    def losses(self, features, masked, sample_uniforms=None, training=False):
        logits = self.mlm_logits(features, masked, training)
        labels = ops.one_hot(masked.masked_lm_ids, self.config.vocab_size, dtype="float32")
        mlm_losses = -ops.sum(ops.log_softmax(logits) * labels, axis=-1)
        sampled = ops.one_hot(self._largest(logits), self.config.vocab_size, dtype="float32")
        sampled = ops.cast(ops.argmax(ops.stop_gradient(sampled), axis=-1), "int32")
        return {
            "mlm_logits": logits,
            "mlm_loss_sum": ops.sum(mlm_losses * masked.masked_lm_weights),
            "mlm_weight": ops.sum(masked.masked_lm_weights),
        } | self._discriminate(features, masked, sampled, training)

    def _largest(self, logits):
        uniforms = keras.random.uniform(ops.shape(logits), seed=self.noise)
        noise = -ops.log(-ops.log(uniforms + 1e-9) + 1e-9)
        return ops.argmax(ops.softmax(ops.stop_gradient(logits) + noise), axis=-1)


def _traced_layer_norm(layer, inputs, training=None):
    return keras.layers.LayerNormalization.call(layer, inputs)


def _unfolded_convolution(layer, inputs, query, values, mask=None):
    """SpanDynamicConvolution.convolve by K copies of the values: [B, N, T, D, K]."""
    kernels = layer._kernels(layer._span_key(inputs) * query)  # [B, N, T, K]
    length, size = ops.shape(values)[2], kernels.shape[-1]
    padded = ops.pad(values, [[0, 0], [0, 0], [(size - 1) // 2] * 2, [0, 0]])
    copies = ops.stack([cut(padded, (2, i, length)) for i in range(size)], axis=-1)
    return ops.squeeze(ops.matmul(copies, kernels[..., None]), axis=-1)


def _repeated(batch):
    """`train_dataset` of a task that gives the same batch at every step."""

    def train_dataset(start_step, context):
        import tensorflow as tf

        return tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)

    return train_dataset


def _options(work):
    return TrainingConfig(batch_size=work["batch"], layerwise_lr_decay=0.8, warmup_steps=0)


def _trained(task, work, fused=True):
    """Steps of the task by the package's own training loop."""
    import tensorflow as tf

    from convbert_tf.training.optimization import FusedAdamW
    from convbert_tf.training.trainer import Trainer

    options, layers = _options(work), task.model.encoder.config.num_hidden_layers
    cls = FusedAdamW if fused else optimization.AdamW
    optimizer = optimization.create(options, 1_000_000, layers, cls)
    trainer = Trainer(task, optimizer, options, tf.distribute.get_strategy())
    return Ready(
        lambda n: trainer.train(tf.constant(n)), task.model.count_params(), device_peak=_device_peak
    )


def _trained_on_jax(model, loss, batch, work):
    """Steps that minimise loss(batch) under jax.jit."""
    import jax

    from convbert_tf.training.on_jax import Stateless

    optimizer = optimization.create(_options(work), 1_000_000, work["config"]["num_hidden_layers"])
    stateless = Stateless(model, optimizer, lambda batch: (loss(batch), ()))
    step = jax.jit(stateless.step, donate_argnums=0)

    def run(n):
        for _ in range(n):
            stateless.held, _ = step(stateless.held, batch)
        jax.block_until_ready(stateless.held)

    return Ready(run, model.count_params(), device_peak=_device_peak)


# --- from files to a result ---


def finetuning_epoch(work):
    """From the files of a CoLA-format task to its score: one epoch, then the dev set."""
    _set_up(work)
    from convbert_tf.workflows import finetuning

    folder = tempfile.TemporaryDirectory()
    preset = os.path.join(folder.name, "preset")
    encoder = ConvBertEncoder(ModelConfig.from_dict(work["config"]))
    encoder.save_to_preset(preset, work["vocab_file"])
    task = TaskConfig(
        name="cola",
        data_dir=work["cola_dir"],
        init_from=preset,
        num_train_epochs=1.0,
        max_seq_length=work["length"],
    )

    def run(n):
        for _ in range(n):
            with tempfile.TemporaryDirectory(dir=folder.name) as model_dir:
                options = finetuning_defaults(model_dir=model_dir, batch_size=work["batch"])
                finetuning.run(FinetuningExperiment(task, options))

    return Ready(run, encoder.count_params(), warm_up=0)


def records(work):
    """Pre-training records of a text file, in this process."""
    _set_up(work)
    from convbert_tf.data import corpus

    def run(n):
        for _ in range(n):
            with tempfile.TemporaryDirectory() as output_dir:
                corpus.build(work["text"], output_dir, work["vocab_file"], num_workers=1)

    return Ready(run, warm_up=1)


# --- questions and serving ---


def make_served(work):
    """Writes a model of `task` in Hugging Face's format to `model`, its exports to any `folder`."""
    _set_up(work)
    from convbert_tf import conversion, serving

    encoder = ConvBertEncoder(ModelConfig.from_dict(work["config"]))
    if work["task"] == "questions":
        model = QuestionAnswerer(encoder, joint=False, mask_logits=False)
        options = {"doc_stride": work["doc_stride"]}
    else:
        model, options = TextClassifier(encoder, num_classes=2, hidden_layer=True), {}
    options["max_seq_length"] = work["length"]
    with tempfile.TemporaryDirectory() as preset:
        model.save_to_preset(preset, work["vocab_file"])
        conversion.convert(preset, work["model"], "huggingface")
        if "folder" not in work:
            return Ready(lambda n: None, encoder.count_params())
        for precision, name in (("float32", "saved_model"), ("bfloat16", "saved_model-bfloat16")):
            path = os.path.join(work["folder"], name)
            serving.export(preset, path, precision=precision, **options)
        for precision in ("float32", "int8"):
            path = os.path.join(work["folder"], f"litert-{precision}")
            serving.export_litert(preset, path, precision, **options)
    return Ready(lambda n: None, encoder.count_params())


def questions(work):
    """From questions and contexts to n-best lists, by workflows/answering.py."""
    _set_up(work)
    from convbert_tf.tasks import squad
    from convbert_tf.workflows.answering import Answerer

    answerer = Answerer(work["model"], max_seq_length=work["length"])
    examples = squad.read_examples(work["squad"], training=False)
    answerer.answer(examples[: 2 * work["batch"]])
    windows = squad.make_windows(examples, answerer.tokenizer, work["length"], quiet=True)
    run = repeat(lambda: answerer.answer(examples))
    return Ready(run, warm_up=0, windows=len(windows), device_peak=_device_peak)


if __name__ == "__main__":
    serve(
        {
            "forward": forward,
            "make_runtime": make_runtime,
            "matrix_product": matrix_product,
            "step": finetuning_step,
            "pretrain": pretraining_step,
            "epoch": finetuning_epoch,
            "records": records,
            "make_served": make_served,
            "questions": questions,
        }
    )
