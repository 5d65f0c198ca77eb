"""The weights files of a Hugging Face directory, in three formats.

No TensorFlow; PyTorch only where the weights are PyTorch's.
"""

import functools
import os
import re
import stat
from typing import Required, TypedDict

import h5py
import keras  # noqa: F401  teaches numpy bfloat16

from convbert_tf.console import UserError, reason
from convbert_tf.files import check_file, how_to_install, read_json
from convbert_tf.weights.stored import Array

# In this order: the first two need no PyTorch.
WEIGHT_FILES = ("model.safetensors", "tf_model.h5", "pytorch_model.bin")


def read_weights(directory):
    """Path of the weights file of `directory`, and name -> Array as in PyTorch's state dict.

    Raises:
        UserError: there is none, it is damaged, or a library to read it is not installed.
    """
    for name in WEIGHT_FILES:
        path = os.path.join(directory, name)
        check_file(path)
        if os.path.exists(path):  # before an index, as in transformers
            paths = [path]
        elif os.path.lexists(index := f"{path}.index.json"):
            shards = _shards(index)
            paths = [os.path.join(directory, os.path.basename(shard)) for shard in shards]
        else:
            continue
        tensors = {}
        for shard in paths:
            arrays = _guarded(shard, functools.partial(_READERS[name], shard))
            tensors |= {_modern(key): _guarded_array(shard, a) for key, a in arrays.items()}
        return path, tensors
    raise UserError(
        f"{directory} has none of {', '.join(WEIGHT_FILES)}: it is incomplete; copy or download "
        "its weights too."
    )


class _Index(TypedDict, total=False):
    weight_map: Required[dict[str, str]]  # of a weight, its file


def _shards(index):
    """Names of the files that an index lists."""
    shards = sorted(set(read_json(index, "an index of shards", _Index)["weight_map"].values()))
    for shard in shards:
        if len(os.fsencode(shard)) > 255:
            raise UserError(f"{index}: {shard!r:.40}... is too long for the name of a file.")
    return shards


def _guarded_array(path, array):
    return Array(array.shape, lambda: _guarded(path, array.read))


def _guarded(path, read):
    """What `read()` gives; its errors in one line that names the file at `path`."""
    check_file(path)
    try:
        return read()
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}: {how_to_install(error)}.") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: a shard of the weights is missing.") from error
    except Exception as error:  # each library has its own for a file that is not whole
        raise UserError(f"{path} is damaged, or no such file: {reason(error)}") from error


def _modern(name):
    """Very old files have TensorFlow's names for LayerNorm's weights."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _read_safetensors(path):
    from safetensors import safe_open

    def read(name):
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return {name: Array(shape, lambda name=name: read(name)) for name, shape in shapes.items()}


def _read_torch(path):
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: Array(tuple(tensor.shape), lambda tensor=tensor: _numpy(tensor))
        for name, tensor in state.items()
    }


def _numpy(tensor):
    """As float32 what has floating point; the rest as it is, for as_weights to refuse."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_h5(path):
    """Keras 2's file: layer/model/name, TensorFlow's shapes, which are PyTorch's reversed."""
    tensors = {}

    def read(key, transposed):
        with h5py.File(path) as file:
            return file[key][()].T if transposed else file[key][()]

    def note(key, item):
        if not isinstance(item, h5py.Dataset):
            return
        name = ".".join(key.removesuffix(":0").split("/")[2:])
        name = name.replace("layer_._", "layer.").replace("wise_kernel", "wise.weight")
        transposed = name.endswith(("kernel", "wise.weight"))
        name = re.sub(r"\.(kernel|gamma|embeddings)$", ".weight", name)
        name = re.sub(r"\.beta$", ".bias", name)
        shape = item.shape[::-1] if transposed else item.shape
        tensors[name] = Array(shape, lambda: read(key, transposed))

    with h5py.File(path) as file:
        file.visititems(note)
    return tensors


_READERS = dict(zip(WEIGHT_FILES, (_read_safetensors, _read_h5, _read_torch), strict=True))


def write_safetensors(path, tensors):
    """Writes `tensors`, pairs of name and float32 values, to the file at `path`.

    Raises:
        UserError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(f"safetensors is not installed: {how_to_install(error)}.") from error
    with open(path, "wb") as file:  # of the mode that the umask gives, which safetensors has not
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(reason(error)) from error
    os.chmod(path, mode)
