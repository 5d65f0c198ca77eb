"""Who may import whom, and the model without TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "convbert_tf"

# Module -> the modules of ours that it may import; `console` besides, all may.
MAY_IMPORT = {
    "__init__": set(),
    "benchmark": {
        "benchmark_tables",
        "benchmark_workers",
        "config",
        "files",
        "flops",
        "text_files",
    },
    "benchmark_ours": {
        "benchmark_workers",
        "config",
        "convolution",
        "corpus",
        "finetuning",
        "fused_adamw",
        "heads",
        "inference",
        "layers",
        "linear",
        "masking",
        "model",
        "normalization",
        "optimization",
        "pretraining",
        "trainer",
    },
    "benchmark_peers": {"benchmark_workers", "corpus"},
    "benchmark_tables": {"files"},
    "benchmark_workers": set(),
    "config": {"files"},
    "checkpoints": {"config", "files", "presets"},
    "console": set(),
    "conversion": {
        "checkpoints",
        "config",
        "files",
        "huggingface",
        "huggingface_files",
        "optimization",
        "original",
        "presets",
        "pretraining",
        "weight_names",
    },
    "convolution": set(),
    "corpus": {
        "files",
        "records",
        "segments",
        "shards",
        "text_files",
        "tfds_text",
        "tokenization",
    },
    "corpus_beam": {"corpus", "files"},
    "text_files": set(),
    "tfds_text": set(),
    "docstrings": set(),
    "documentation": {"docstrings", "documentation_tasks"},
    "documentation_tasks": set(),
    "finetuning": {
        "checkpoints",
        "config",
        "files",
        "glue",
        "heads",
        "input_pipeline",
        "model",
        "presets",
        "records",
        "squad",
        "squad_decoding",
        "strategies",
        "tokenization",
        "training",
    },
    "files": set(),
    "flops": set(),
    "fused_adamw": {"optimization"},
    "glue": {"config", "files", "records", "tokenization"},
    "gradients": set(),
    "heads": {"gradients", "linear", "model", "presets"},
    "huggingface": {
        "config",
        "files",
        "heads",
        "huggingface_files",
        "model",
        "normalization",
        "presets",
        "pretraining",
        "weight_names",
    },
    "huggingface_files": {"config", "files"},
    "inference": set(),
    "input_pipeline": {"records", "shards"},
    "interruption": set(),
    "layers": {"convolution", "linear", "normalization"},
    "linear": {"gradients"},
    "masking": set(),
    "model": {"config", "convolution", "layers", "linear", "normalization", "presets"},
    "monitoring": {"config", "files"},
    "normalization": {"gradients"},
    "optimization": {"config"},
    "plots": {"config", "files"},
    "original": {"config", "heads", "model", "pretraining", "weight_names"},
    # And, by name, huggingface and the models, which import it.
    "presets": {"config", "files", "huggingface_files"},
    "pretraining": {"config", "flops", "heads", "masking", "model", "optimization", "presets"},
    "records": {"files"},
    "segments": set(),
    "shards": {"records"},
    "strategies": set(),
    "preprocessing": {"presets", "tokenization"},
    "serving": {
        "config",
        "files",
        "heads",
        "inference",
        "model",
        "preprocessing",
        "presets",
        "squad",
        "tokenization",
    },
    "squad": {"config", "records", "tokenization"},
    "squad_decoding": {"files", "squad"},
    "tokenization": {"files"},
    "trainer": {"checkpoints", "interruption", "optimization", "strategies"},
    "training": {
        "checkpoints",
        "files",
        "fused_adamw",
        "interruption",
        "monitoring",
        "optimization",
        "strategies",
        "trainer",
    },
    "weight_names": {"heads", "pretraining"},
}
# These run on every backend of Keras, so neither they nor what they import may load TensorFlow.
WITHOUT_TENSORFLOW = {
    "benchmark",
    "benchmark_tables",
    "benchmark_workers",
    "config",
    "console",
    "convolution",
    "files",
    "flops",
    "gradients",
    "heads",
    "huggingface",
    "huggingface_files",
    "layers",
    "linear",
    "masking",
    "model",
    "normalization",
    "optimization",
    "plots",
    "presets",
    "pretraining",
    "weight_names",
}
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "official", "orbit"}
# The two sides meet in finetuning, serving and tools alone, by the names of a batch.
DATA = {
    "corpus",
    "documentation",
    "glue",
    "input_pipeline",
    "records",
    "shards",
    "squad",
    "squad_decoding",
    "tokenization",
}
MODEL = {"convolution", "heads", "layers", "masking", "model", "normalization", "pretraining"}


def read_sources(folder):
    paths = sorted((ROOT / folder).glob("*.py"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def imported(source):
    """Dotted names of all imports in `source`, at its head and inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([PACKAGE] * bool(node.level) + [node.module] * bool(node.module))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def first_parts(names):
    return {name.split(".")[0] for name in names}


def our_modules(names, modules):
    """Those of `modules` among `names`; "__init__" for what is the package's own."""
    inner = [name.split(".")[1:] for name in names if name.split(".")[0] == PACKAGE]
    return {parts[0] if parts and parts[0] in modules else "__init__" for parts in inner}


def reachable(module, graph):
    """`module` and all that it imports, directly or not."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph.get(name, ())
    return seen


def violations(sources):
    """What in the modules `sources` (name -> text) breaks the rules, a line each."""
    names = {module: imported(source) for module, source in sources.items()}
    graph = {module: our_modules(names[module], sources) for module in sources}
    found = [f"{module} is not in MAY_IMPORT" for module in sources.keys() - MAY_IMPORT.keys()]
    found += [f"MAY_IMPORT's {module} is gone" for module in MAY_IMPORT.keys() - sources.keys()]
    for module in sources.keys() & MAY_IMPORT.keys():
        extra = graph[module] - MAY_IMPORT[module] - {"console"}
        found += [f"{module} imports {other}" for other in extra]
        outer = first_parts(names[module]) & {"tools", "tests", "configs"}
        found += [f"{module} imports {folder}/" for folder in outer]
    for module in WITHOUT_TENSORFLOW:
        for through in reachable(module, graph) & names.keys():
            foreign = first_parts(names[through]) & TENSORFLOW
            found += [f"{module} loads {name} through {through}" for name in foreign]
    for side, other_side in ((DATA, MODEL), (MODEL, DATA)):
        for module in side:
            met = reachable(module, graph) & other_side
            found += [f"{module} reaches {other} of the other side" for other in met]
    return sorted(found)


def test_modules_keep_the_import_direction():
    assert violations(read_sources(PACKAGE)) == []


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("layers", "from convbert_tf import model", "layers imports model"),
        ("layers", "from convbert_tf.model import ConvBertEncoder", "layers imports model"),
        ("layers", "import convbert_tf.model", "layers imports model"),
        ("layers", "from .model import ConvBertEncoder", "layers imports model"),
        ("config", "from convbert_tf import ModelConfig", "config imports __init__"),
        ("masking", "def f():\n    import tensorflow as tf", "masking loads tensorflow through"),
        ("config", "import orbit.utils", "pretraining loads orbit through config"),
        ("records", "from convbert_tf import masking", "glue reaches masking of the other side"),
        ("heads", "from convbert_tf import glue", "heads reaches records of the other side"),
        ("corpus", "from tests import goldens", "corpus imports tests/"),
        ("training", "import tools.pretrain", "training imports tools/"),
        ("utils", "import os", "utils is not in MAY_IMPORT"),
    ],
)
def test_a_planted_import_is_found(module, line, expected):
    sources = read_sources(PACKAGE)
    sources[module] = f"{sources.get(module, '')}\n{line}\n"
    assert any(found.startswith(expected) for found in violations(sources))


def test_a_module_that_is_gone_is_found():
    sources = read_sources(PACKAGE)
    del sources["serving"]
    assert violations(sources) == ["MAY_IMPORT's serving is gone"]


def test_nothing_imports_tools_and_only_tests_import_tests():
    for folder, forbidden in (
        ("configs", {"tools", "tests"}),
        ("tools", {"tools", "tests"}),
        ("tests", {"tools"}),
    ):
        for name, source in read_sources(folder).items():
            # Beside a binary its folder is on the path: `import pretrain` would be found as well.
            siblings = read_sources("tools").keys() if folder == "tools" else set()
            met = first_parts(imported(source)) & (forbidden | siblings)
            assert not met, f"{folder}/{name}.py imports {met}"


def run_python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_model_runs_and_learns_on_jax_where_there_is_no_tensorflow(tmp_path):
    write_outputs(tmp_path)
    code = "import sys; from tests import imports_test as t; t.on_jax(sys.argv[1])"
    result = run_python(code, str(tmp_path), KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "jax, without TensorFlow"


def tiny_config():
    import convbert_tf

    return convbert_tf.ModelConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        embedding_size=8,
        conv_kernel_size=3,
        linear_groups=2,
        max_position_embeddings=12,
        generator_hidden_size=0.5,
    )


def make_features():
    import numpy as np

    ids = np.random.default_rng(0).integers(5, 50, (3, 10)).astype("int32")
    return {
        "input_ids": ids,
        "input_mask": (np.arange(10) < [[10], [7], [4]]).astype("int32"),
        "segment_ids": (np.arange(10) >= [[6], [3], [10]]).astype("int32"),
    }


def flat_outputs(encoder):
    import numpy as np

    outputs = encoder(make_features())
    states = {f"hidden_{i}": state for i, state in enumerate(outputs.pop("hidden_states"))}
    return {name: np.array(value) for name, value in (outputs | states).items()}


def write_outputs(directory):
    """A preset of an encoder with no weight zero or one, and what it gives on TensorFlow."""
    import keras
    import numpy as np

    import convbert_tf

    assert keras.backend.backend() == "tensorflow"
    encoder = convbert_tf.ConvBertEncoder(tiny_config())
    random = np.random.default_rng(3)
    for variable in encoder.weights:
        variable.assign(variable + 0.2 * random.normal(size=variable.shape))
    encoder.save_to_preset(directory / "preset")
    np.savez(directory / "outputs.npz", **flat_outputs(encoder))


def check_same_outputs(directory):
    import numpy as np

    import convbert_tf
    from tests import goldens

    encoder = convbert_tf.ConvBertEncoder.from_preset(os.path.join(directory, "preset"))
    outputs = flat_outputs(encoder)
    with np.load(os.path.join(directory, "outputs.npz")) as file:
        assert outputs.keys() == set(file.files) and len(outputs) == 5
        for name, value in outputs.items():
            assert goldens.error(value, file[name]) < 1e-5, name


class NoTensorFlow:
    """A finder for sys.meta_path by which TensorFlow is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in TENSORFLOW:
            raise ModuleNotFoundError(f"the test forbids {name}", name=name)


def on_jax(directory):
    """Outputs, losses of a pre-training step, an encoder's gradient; in a process of its own."""
    sys.meta_path.insert(0, NoTensorFlow)
    import jax
    import keras

    import convbert_tf

    with pytest.raises(ModuleNotFoundError, match="the test forbids tensorflow"):
        import tensorflow  # noqa: F401

    check_same_outputs(directory)
    keras.utils.set_random_seed(0)
    model = convbert_tf.ConvBertPretrainer(tiny_config())
    check_losses(model, make_features(), jax)
    check_gradient(model.discriminator, make_features(), jax)
    assert not first_parts(sys.modules) & TENSORFLOW
    print(f"{keras.backend.backend()}, without TensorFlow")


def check_losses(model, features, jax):
    """An untrained model guesses: the losses are near those of chance."""
    import numpy as np

    from convbert_tf.modeling import masking

    uniforms = np.random.default_rng(1).random((3, 2, 10)).astype("float32")
    special_tokens = masking.SpecialTokens(2, 3, 4)

    def losses(features, uniforms):
        masked = masking.mask_inputs(features, uniforms, special_tokens, model.pretraining)
        return model.losses(features, masked)

    outputs = jax.jit(losses)(features, uniforms)
    assert float(outputs["mlm_weight"]) > 0 and float(outputs["disc_weight"]) == 21
    chance = np.log(50) + model.pretraining.disc_weight * np.log(2)
    np.testing.assert_allclose(float(model.total_loss(outputs)), chance, rtol=0.2)


def check_gradient(encoder, features, jax):
    """jax.grad against the slope that is measured along a random direction."""
    import numpy as np

    random = np.random.default_rng(2)
    values = [variable.value for variable in encoder.trainable_variables]
    fixed = [variable.value for variable in encoder.non_trainable_variables]
    projection = random.normal(size=(3, 10, 16)).astype("float32")

    def loss(values):
        outputs, _ = encoder.stateless_call(values, fixed, features)
        return (outputs["sequence_output"] * projection).mean()

    loss_of, gradient_of = jax.jit(loss), jax.jit(jax.grad(loss))
    gradients = gradient_of(values)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    direction = [random.normal(size=value.shape).astype("float32") for value in values]
    step = 1e-3
    up = loss_of([value + step * way for value, way in zip(values, direction, strict=True)])
    down = loss_of([value - step * way for value, way in zip(values, direction, strict=True)])
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(slope, float(up - down) / (2 * step), rtol=0.05)
