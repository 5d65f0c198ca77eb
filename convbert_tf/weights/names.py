"""The names and shapes of every weight of every model, ours and the original's.

Both follow from the kind of a model and its config alone. Ours are the paths of attributes that
lead to a weight in the model (`layer_0` stands for `blocks[0]`). The one table of the original's
names serves all formats in both directions: huggingface.py derives Hugging Face's names from it.
Our fused projection holds four of their matrices side by side, so a name there stands for a `Part`.

Axes as in modeling/layers.py.
"""

import collections
import dataclasses

import numpy as np

from convbert_tf.console import UserError
from convbert_tf.weights.stored import Array, as_weights

QA_HIDDEN_SIZE = 512


# --- ours ---


def shapes(stored):
    """Name -> shape of every weight of a model of the kind and config of `stored`."""
    config = stored.model_config
    if stored.kind == "ConvBertEncoder":
        return _encoder(config)
    if stored.kind == "ConvBertPretrainer":
        return _pretrainer(config, stored.pretraining)
    hidden = config.hidden_size
    head = _answerer(hidden, stored.config)
    if stored.kind in ("TextClassifier", "TokenClassifier"):
        head = _dense("logits", hidden, stored.config["num_classes"])
        if stored.config.get("hidden_layer"):
            head |= _dense("hidden", hidden, hidden)
    return _prefixed("encoder/", _encoder(config)) | head


def check_layers(stored, number, source):
    """Refuses a config with more layers than the `number` of arrays in a file can hold.

    Before `shapes`, which is as long as the config says; all other sizes show in a shape.
    """
    config = stored.model_config
    if config.num_hidden_layers > number:
        raise UserError(
            f"{source} holds {number:,} arrays, too few for num_hidden_layers "
            f"{config.num_hidden_layers:,} of its config."
        )


def _prefixed(prefix, names):
    return {prefix + name: value for name, value in names.items()}


def _dense(name, inputs, units):
    return {f"{name}/kernel": (inputs, units), f"{name}/bias": (units,)}


def _norm(name, size):
    return {f"{name}/gamma": (size,), f"{name}/beta": (size,)}


def _encoder(config, own_embeddings=True):
    embedding, hidden = config.embedding_size, config.hidden_size
    names = {}
    if own_embeddings:
        names = {
            "embeddings/word_embeddings": (config.vocab_size, embedding),
            "embeddings/token_type_embeddings": (config.type_vocab_size, embedding),
            "embeddings/position_embeddings": (config.max_position_embeddings, embedding),
        } | _norm("embeddings/norm", embedding)
    if embedding != hidden:
        names |= _dense("embeddings_project", embedding, hidden)
    for i in range(config.num_hidden_layers):
        names |= _prefixed(f"layer_{i}/", _block(config))
    return names


def _block(config):
    hidden, groups = config.hidden_size, config.linear_groups
    heads = max(1, int(config.num_attention_heads / config.head_ratio))  # N
    width = heads * (hidden // config.num_attention_heads)  # A
    has_convolution = config.conv_type != "noconv"
    names = _dense("attention/projection", hidden, width * (4 if has_convolution else 3))
    if has_convolution:
        kernel, layer = config.conv_kernel_size, "attention/convolution"
        if config.conv_type == "sdconv":
            names |= {
                f"{layer}/depthwise_kernel": (kernel, hidden),
                f"{layer}/pointwise_kernel": (hidden, width),
                f"{layer}/pointwise_bias": (width,),
            }
        names |= _dense(f"{layer}/kernel_projection", width, heads * kernel)
    names |= _dense("attention_output", width * (2 if has_convolution else 1), hidden)
    names |= _norm("attention_norm", hidden)
    names |= _grouped("feed_forward/up", hidden, config.intermediate_size, groups)
    names |= _grouped("feed_forward/down", config.intermediate_size, hidden, groups)
    return names | _norm("output_norm", hidden)


def _grouped(name, inputs, units, groups):
    names = _dense(name, inputs, units)
    if groups > 1:
        names[f"{name}/kernel"] = (groups, inputs // groups, units // groups)
    return names


def _pretrainer(config, pretraining):
    names, generator = _prefixed("discriminator/", _encoder(config)), config
    if pretraining.has_own_generator:
        generator, untied = config.generator(), config.untied_generator_embeddings
        names |= _prefixed("generator/", _encoder(generator, own_embeddings=untied))
    if pretraining.objective == "electra":
        names |= _dense("discriminator_head/dense", config.hidden_size, config.hidden_size)
        names |= _dense("discriminator_head/logit", config.hidden_size, 1)
    if not pretraining.uniform_generator:
        embedding = generator.embedding_size
        names |= _dense("generator_head/dense", generator.hidden_size, embedding)
        names |= _norm("generator_head/norm", embedding)
        names["generator_head/output_bias"] = (config.vocab_size,)
    return names


def _answerer(hidden, config):
    if config.get("joint", True):
        names = _dense("start", hidden, 1) | _dense("end_hidden", 2 * hidden, QA_HIDDEN_SIZE)
        names |= _dense("end", QA_HIDDEN_SIZE, 1)
    else:
        names = _dense("logits", hidden, 2)
    if config.get("answerable"):
        names |= _dense("answerable_hidden", 2 * hidden, QA_HIDDEN_SIZE)
        names |= _dense("answerable_logit", QA_HIDDEN_SIZE, 1)
    return names


# --- the original's ---


@dataclasses.dataclass(frozen=True)
class Part:
    """A weight of ours, or a slice of its last axis, under the shape that it has elsewhere.

    Attributes:
        name, whole: of our weight, its name and shape.
        part, parts: which of `parts` equal slices.
        transpose, as_shape: how the slice lies elsewhere: transposed, then reshaped.
    """

    name: str
    whole: tuple
    part: int = 0
    parts: int = 1
    transpose: bool = False
    as_shape: tuple | None = None

    @property
    def shape(self):
        own = (*self.whole[:-1], self.whole[-1] // self.parts)
        return tuple(self.as_shape or (own[::-1] if self.transpose else own))

    def elsewhere(self, as_shape=None, transpose=False):
        """The same slice as another format holds it."""
        return dataclasses.replace(self, as_shape=as_shape, transpose=transpose)

    def slice(self, whole):
        """This part of `whole`, an array like the weight (its gradient, say)."""
        own = np.asarray(whole)[..., self._columns]
        return (own.T if self.transpose else own).reshape(self.shape)

    def put(self, values, whole):
        """Writes `values`, an array of `shape`, to its place in `whole`."""
        own = whole[..., self._columns].shape
        values = np.reshape(values, own[::-1]).T if self.transpose else np.reshape(values, own)
        whole[..., self._columns] = values

    @property
    def _columns(self):
        width = self.whole[-1] // self.parts
        return slice(self.part * width, (self.part + 1) * width)


def original_names(stored, task=None):
    """Name in the original's checkpoints -> Part, for every weight of `stored`.

    Args:
        stored: Stored, whose kind and config count.
        task: the original's name of the task, for a model with a task head.

    Raises:
        UserError: the original has no such head.
    """
    table = _Table(shapes(stored), stored.model_config)
    if stored.kind == "ConvBertEncoder":
        return table.encoder("")
    if stored.kind == "ConvBertPretrainer":
        return _pretrainer_names(table, stored)
    if stored.config.get("hidden_layer"):
        raise UserError(
            "the original's classifier has no hidden layer: choose another format, or fine-tune "
            "the encoder with a new head."
        )
    head = f"task_specific/{task}/"
    return table.encoder("encoder/") | _head_names(table, stored, head)


def _head_names(table, stored, prefix):
    layers = {"logits": "dense"}
    if stored.kind == "QuestionAnswerer":
        layers = {"start": "dense", "end_hidden": "qa_hidden", "end": "dense_1"}
        layers |= {"answerable_hidden": "dense_2", "answerable_logit": "dense_3"}
    names = {}
    for ours, theirs in layers.items():
        if f"{ours}/kernel" in table.shapes:
            names |= table.layer(ours, prefix + theirs)
    if stored.kind == "QuestionAnswerer" and "logits/kernel" in table.shapes:
        for i, theirs in enumerate(("dense", "dense_1")):
            names |= table.layer("logits", prefix + theirs, part=i, parts=2)
    return names


def _pretrainer_names(table, stored):
    names, config, pretraining = table.encoder("discriminator/"), stored.model_config, None
    pretraining = stored.pretraining
    if pretraining.has_own_generator:
        embeddings = "generator" if config.untied_generator_embeddings else None
        generator = _Table(table.shapes, config.generator())
        names |= generator.encoder("generator/", "generator", embeddings)
    if not pretraining.uniform_generator:
        names |= masked_lm_head_names(table.shapes)
    if pretraining.objective == "electra":
        theirs = "discriminator_predictions/"
        names |= table.layer("discriminator_head/dense", f"{theirs}dense")
        names |= table.layer("discriminator_head/logit", f"{theirs}dense_1")
    return names


def masked_lm_head_names(shapes):
    """As `original_names`, for the generator's head; the word embeddings are its output weights."""
    table, theirs = _Table(shapes, None), "generator_predictions/"
    names = table.layer("generator_head/dense", f"{theirs}dense")
    names |= table.norm("generator_head/norm", f"{theirs}LayerNorm")
    return names | {f"{theirs}output_bias": table.part("generator_head/output_bias")}


class _Table:
    """Makes pieces of the table: names there -> Parts of our weights of these `shapes`."""

    def __init__(self, shapes, config):
        self.shapes, self.config = shapes, config

    def part(self, name, **options):
        return Part(name, self.shapes[name], **options)

    def layer(self, ours, theirs, **options):
        return {f"{theirs}/{x}": self.part(f"{ours}/{x}", **options) for x in ("kernel", "bias")}

    def norm(self, ours, theirs):
        return {f"{theirs}/{x}": self.part(f"{ours}/{x}") for x in ("gamma", "beta")}

    def encoder(self, prefix, scope="electra", embeddings_scope="electra"):
        """The encoder whose weights begin with `prefix`; no embeddings if their scope is None."""
        names = {}
        if embeddings_scope:
            ours, theirs = f"{prefix}embeddings/", f"{embeddings_scope}/embeddings/"
            for table in ("word", "token_type", "position"):
                names[f"{theirs}{table}_embeddings"] = self.part(f"{ours}{table}_embeddings")
            names |= self.norm(f"{ours}norm", f"{theirs}LayerNorm")
        if f"{prefix}embeddings_project/kernel" in self.shapes:
            names |= self.layer(f"{prefix}embeddings_project", f"{scope}/embeddings_project")
        for i in range(self.config.num_hidden_layers):
            names |= self._block(f"{prefix}layer_{i}/", f"{scope}/encoder/layer_{i}/")
        return names

    def _block(self, ours, theirs):
        names = self._attention(f"{ours}attention/", f"{theirs}attention/self/")
        dense = "dense" if self.config.linear_groups == 1 else "g_dense"
        names |= self.layer(f"{ours}attention_output", f"{theirs}attention/output/dense")
        names |= self.norm(f"{ours}attention_norm", f"{theirs}attention/output/LayerNorm")
        names |= self.layer(f"{ours}feed_forward/up", f"{theirs}intermediate/{dense}")
        names |= self.layer(f"{ours}feed_forward/down", f"{theirs}output/{dense}")
        return names | self.norm(f"{ours}output_norm", f"{theirs}output/LayerNorm")

    def _attention(self, ours, theirs):
        has_convolution = self.config.conv_type != "noconv"
        parts = ["query", "key", "value"] + ["conv_attn_point"] * has_convolution
        names = {}
        for i, part in enumerate(parts):
            names |= self.layer(f"{ours}projection", theirs + part, part=i, parts=len(parts))
        layer, key = f"{ours}convolution/", f"{theirs}conv_attn_key/"
        if has_convolution:
            kernels = self.layer(f"{layer}kernel_projection", f"{theirs}conv_attn_kernel")
            names |= kernels
        if self.config.conv_type == "sdconv":
            depthwise, pointwise = f"{layer}depthwise_kernel", f"{layer}pointwise_kernel"
            names |= {
                f"{key}depthwise_kernel": self.part(
                    depthwise, as_shape=(*self.shapes[depthwise], 1)
                ),
                f"{key}pointwise_kernel": self.part(
                    pointwise, as_shape=(1, *self.shapes[pointwise])
                ),
                f"{key}bias": self.part(f"{layer}pointwise_bias"),
            }
        return names


# --- from theirs to ours and back ---


def to_ours(names, tensors, source):
    """Our arrays, name -> Array, each put together when it is read.

    Args:
        names: name there -> Part.
        tensors: name there -> Array.
        source: names them in messages.

    Raises:
        UserError: a weight is missing from `tensors`, or has another shape; names it.
    """
    parts_of = collections.defaultdict(list)
    for name, part in names.items():
        if name not in tensors:
            raise UserError(f"{source} has no {name!r}; it was made with another configuration.")
        shape = tensors[name].shape
        # Axes of size 1 hold nothing: Hugging Face's two formats set them differently.
        if _without_ones(shape) != _without_ones(part.shape):
            raise UserError(
                f"{source}: {name!r} has shape {tuple(shape)}, the configuration asks for "
                f"{part.shape}."
            )
        parts_of[part.name].append((part, name, tensors[name]))
    return {
        name: Array(parts[0][0].whole, lambda parts=parts: _assembled(parts, source))
        for name, parts in parts_of.items()
    }


def _assembled(parts, source):
    whole = np.empty(parts[0][0].whole, "float32")
    for part, name, array in parts:
        part.put(as_weights(array.read(), name, source), whole)
    return whole


def to_theirs(names, arrays):
    """Yields (name there, values float32) of our `arrays`; each of ours is read once."""
    parts_of = collections.defaultdict(list)
    for name, part in names.items():
        parts_of[part.name].append((name, part))
    for ours, parts in parts_of.items():
        whole = np.asarray(arrays[ours].read(), "float32")
        for name, part in parts:
            yield name, np.ascontiguousarray(part.slice(whole))


def _without_ones(shape):
    return tuple(size for size in shape if size != 1)
