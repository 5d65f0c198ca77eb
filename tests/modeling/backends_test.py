"""The model on another backend of Keras: JAX, where there is no TensorFlow."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "official", "orbit"}


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
    code = "import sys; from tests.modeling import backends_test as t; t.on_jax(sys.argv[1])"
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
    assert not {name.split(".")[0] for name in sys.modules} & TENSORFLOW
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
