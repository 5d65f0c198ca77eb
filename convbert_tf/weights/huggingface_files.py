"""Files of a Hugging Face directory: weights in three formats, the vocabulary; and its hub.

No TensorFlow; PyTorch only where the weights are PyTorch's.
"""

import atexit
import os
import re
import shutil
import tempfile

import h5py
import keras  # noqa: F401  teaches numpy bfloat16

from convbert_tf.console import UserError, reason, say
from convbert_tf.files import read_json

# In this order: the first two need no PyTorch.
WEIGHT_FILES = ("model.safetensors", "tf_model.h5", "pytorch_model.bin")
# Tokenizers that split as ours, if of type WordPiece.
_TOKENIZERS = r"(ConvBert|Bert|Electra)Tokenizer(Fast)?|PreTrainedTokenizerFast|TokenizersBackend"


def read_weights(directory):
    """Path of the weights file of `directory`, and name -> array as in PyTorch's state dict.

    Raises:
        UserError: there is none, it is damaged, or a library to read it is not installed.
    """
    for name in WEIGHT_FILES:
        path = os.path.join(directory, name)
        if os.path.exists(index := f"{path}.index.json"):
            shards = _shards(index)
            paths = [os.path.join(directory, os.path.basename(shard)) for shard in shards]
        elif os.path.exists(path):
            paths = [path]
        else:
            continue
        tensors = {}
        for shard in paths:
            tensors |= _read_file(shard, _READERS[name])
        return path, {_modern(name): values for name, values in tensors.items()}
    raise UserError(f"{directory} has none of {', '.join(WEIGHT_FILES)}.")


def _shards(index):
    """Names of the files that an index lists."""
    values = read_json(index, "an index of shards")
    try:
        return sorted(set(values["weight_map"].values()))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{index} is damaged: it has no weight_map.") from error


def _read_file(path, reader):
    try:
        return reader(path)
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}: pip install {error.name}.") from error
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
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch(path):
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def _read_h5(path):
    """Keras 2's file: layer/model/name, TensorFlow's shapes, which are PyTorch's reversed."""
    tensors = {}

    def read(name, item):
        if isinstance(item, h5py.Dataset):
            name = ".".join(name.removesuffix(":0").split("/")[2:])
            name = name.replace("layer_._", "layer.").replace("wise_kernel", "wise.weight")
            transposed = name.endswith(("kernel", "wise.weight"))
            name = re.sub(r"\.(kernel|gamma|embeddings)$", ".weight", name)
            name = re.sub(r"\.beta$", ".bias", name)
            tensors[name] = item[()].T if transposed else item[()]

    with h5py.File(path) as file:
        file.visititems(read)
    return tensors


_READERS = dict(zip(WEIGHT_FILES, (_read_safetensors, _read_h5, _read_torch), strict=True))


def vocabulary(directory):
    """Path of the vocabulary of a Hugging Face directory, and whether texts are lower-cased.

    Where tokenizer.json alone holds it, as new versions of transformers write it, a file is made
    of it, which lasts as long as the process.

    Raises:
        UserError: there is none, or the tokenizer is another than BERT's.
    """
    path = os.path.join(directory, "vocab.txt")
    settings, tokenizer = (
        _read_optional(os.path.join(directory, name))
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    kind = settings.get("tokenizer_class") or "ConvBertTokenizer"
    model = tokenizer.get("model", {"type": "WordPiece"})
    if not isinstance(model, dict):
        raise UserError(f"{directory}/tokenizer.json is damaged: its model is no object.")
    if not re.fullmatch(_TOKENIZERS, kind) or model.get("type") != "WordPiece":
        raise UserError(f"{directory}: the tokenizer ({kind}) is not BERT's WordPiece.")
    normalizer = tokenizer.get("normalizer") or {}
    lower_case = settings.get("do_lower_case", normalizer.get("lowercase", True))
    strip_accents = settings.get("strip_accents", normalizer.get("strip_accents"))
    if strip_accents is not None and strip_accents != lower_case:
        say(f"{directory}: its tokenizer has strip_accents {strip_accents}, ours {lower_case}")
    if not os.path.exists(path):
        if "vocab" not in model:
            raise UserError(f"{directory} has neither vocab.txt nor tokenizer.json.")
        path = _write_vocabulary(model["vocab"])
    return path, lower_case


def _read_optional(path):
    return read_json(path, "a tokenizer of Hugging Face") if os.path.exists(path) else {}


def _write_vocabulary(ids):
    """Path of a file of the pieces in the order of their ids (piece -> id)."""
    folder = tempfile.mkdtemp(prefix="convbert-vocab-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "vocab.txt")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece}\n" for piece in sorted(ids, key=ids.get))
    return path


def download(address):
    """Local path of a model on the hub, downloaded to huggingface_hub's cache if it is not there.

    Args:
        address: "hf://owner/name" or "hf://owner/name@revision": a branch, tag or commit. With
            HF_HUB_OFFLINE=1 only the cache is looked at.

    Raises:
        UserError: it is not there, or cannot be reached.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address)
    if not match or ".." in address:
        raise UserError(f"{address!r} is no address like hf://owner/name or hf://owner/name@tag.")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise UserError(f"{address} needs it: pip install huggingface_hub.") from error
    repo, revision = match.groups()
    # Of the weights one file is enough; those of a preset, and safetensors, come first.
    files = ["*.json", "vocab.txt"]
    choices = (["model.weights.h5", "model*.safetensors"], ["tf_model.h5"], ["pytorch_model*.bin"])
    try:
        for weights in choices:
            path = snapshot_download(repo, revision=revision, allow_patterns=files + weights)
            if any(name.endswith((".h5", ".safetensors", ".bin")) for name in os.listdir(path)):
                break
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{address} is not (or not wholly) in the cache, and the hub cannot be reached: set "
            "HF_HUB_OFFLINE=0, or give a local directory."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{repo} is not on the hub, or private: then set HF_TOKEN.") from error
    return path
