"""What TensorFlow Serving wants beside the graph of a SavedModel, and what it makes of it.

`complete` gives a directory that `tf.saved_model.save` has written

- the method names of signatures for Classify and Regress calls: `save` calls all of them Predict,
  which a server with --enable_signature_method_name_check refuses;
- assets.extra/tf_serving_warmup_requests, which a server computes before it says that it is ready;
- batching_params.pbtxt, for --enable_batching --enable_per_model_batching_parameters.
"""

import itertools
import os

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils  # TensorFlow has no public name

from convbert_tf.files import write_bytes

METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
_SHORTEST = 16  # tokens of the first length bucket; each is twice the one before
_BATCHING = b"""\
# For tensorflow_model_server --enable_batching --enable_per_model_batching_parameters.
# Rows that are computed at once. A request may have up to max_batch_size; it is split.
max_execution_batch_size { value: 32 }
max_batch_size { value: 1024 }
enable_large_batch_splitting { value: true }
# How long the first request of a batch waits for others.
batch_timeout_micros { value: 1000 }
# Batches that may wait; beyond them requests are refused as UNAVAILABLE.
max_enqueued_batches { value: 100 }
# No pad_variable_length_inputs: it pads input_mask too, and not with 0.
"""


def complete(directory, server):
    """Adds to the SavedModel in `directory` what TensorFlow Serving reads.

    Args:
        directory: of the SavedModel of `server`.
        server: a ClassifierServer, TaggerServer or QuestionAnswererServer.

    Returns:
        signature's name -> {"method", "inputs", "outputs"}, the latter of tensors by their names,
        with "dtype" and "shape" (None where it varies), as JSON can hold it.
    """
    path = os.path.join(directory, "saved_model.pb")
    with open(path, "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    signatures = saved.meta_graphs[0].signature_def
    for name in METHODS.keys() & signatures.keys():
        signatures[name].method_name = METHODS[name]
    write_bytes(path, saved.SerializeToString(deterministic=True))
    fingerprinting_utils.write_fingerprint(directory)  # of the file as it is now
    write_bytes(os.path.join(directory, "batching_params.pbtxt"), _BATCHING)
    _write_warmup(os.path.join(directory, WARMUP_FILE), server, signatures.keys())
    shown = [name for name in signatures if not name.startswith("__")]  # not TensorFlow's own
    return {name: _described(signatures[name]) for name in shown}


def _described(signature):
    def tensors(infos):
        return {
            name: {
                "dtype": tf.dtypes.as_dtype(info.dtype).name,
                "shape": tf.TensorShape(info.tensor_shape).as_list(),
            }
            for name, info in sorted(infos.items())
        }

    inputs, outputs = tensors(signature.inputs), tensors(signature.outputs)
    return {"method": signature.method_name, "inputs": inputs, "outputs": outputs}


# --- warm-up requests ---


def buckets(max_seq_length):
    """Lengths in tokens, each twice the one before, up to `max_seq_length`."""
    lengths = []
    length = _SHORTEST
    while length < max_seq_length:
        lengths.append(length)
        length *= 2
    return [*lengths, max_seq_length]


def _write_warmup(path, server, signatures):
    """Writes a request a length bucket, and one to each signature beside the first."""
    described, word = server.describe(), _word(server.tokenizer)
    lengths = buckets(described["max_seq_length"])
    texts = [_texts(described["inputs"], word, length) for length in lengths]
    requests = [_predict_log("serving_default", each) for each in texts]
    if "n_best" in signatures:
        requests.append(_predict_log("n_best", texts[0]))
    requests += [_examples_log(name, texts[0]) for name in METHODS if name in signatures]
    requests.append(_predict_log("predict_ids", _ids(server.tokenizer, word, lengths[0])))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for request in requests:
            writer.write(request)


def _word(tokenizer):
    """A word that is one piece of the vocabulary, or else any."""
    words = (piece for piece in tokenizer.vocab if piece.isascii() and piece.isalpha())
    return max(itertools.islice(words, 10_000), key=len, default="a")


def _texts(names, word, length):
    """Input -> a text [1], with about `length` tokens together."""
    first = length // 4 if len(names) > 1 else length
    return {
        name: tf.constant([" ".join([word] * max(1, number - 2))])
        for name, number in zip(names, (first, length - first), strict=False)
    }


def _ids(tokenizer, word, length):
    ids = tokenizer.tokenize([" ".join([word] * length)]).values[: length - 2]
    ids = tf.concat([[tokenizer.cls_id], ids, [tokenizer.sep_id]], axis=0)[None]
    inputs = {"input_ids": ids, "input_mask": tf.ones_like(ids), "segment_ids": tf.zeros_like(ids)}
    return inputs


def _predict_log(signature, inputs):
    """A serialised PredictionLog of a PredictRequest; see `_field`."""
    tensors = [
        _field(1, name.encode()) + _field(2, tf.make_tensor_proto(values).SerializeToString())
        for name, values in inputs.items()
    ]
    request = _model(signature) + b"".join(_field(2, entry) for entry in tensors)
    return _field(6, _field(1, request))  # predict_log, its request


def _examples_log(signature, inputs):
    """A serialised PredictionLog of a ClassificationRequest or RegressionRequest."""
    feature = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=values.numpy()))
        for name, values in inputs.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    request = _model(signature) + _field(2, _field(1, _field(1, example)))  # input, example_list
    return _field({"classify": 2, "regress": 3}[signature], _field(1, request))


def _model(signature):
    """The field model_spec of a request; a warm-up needs no model's name."""
    return _field(1, _field(3, signature.encode()))


def _field(number, content):
    """A field of a protocol buffer that is a string or a message.

    These few messages are put together here since TensorFlow Serving's own package, which depends
    on gRPC, is no part of an export. A test reads them with it.
    """
    size, length = len(content), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content
