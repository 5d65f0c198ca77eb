"""The question answerer of independent starts and ends, with and without a mask, against NumPy."""

import numpy as np
import pytest
import scipy.special

from convbert_tf import ConvBertEncoder, QuestionAnswerer
from convbert_tf.console import UserError
from tests.modeling.encoder_test import tiny
from tests.modeling.heads_test import ALLOWED, LENGTH, gelu, inputs, log_softmax, without_dropout


def independent(**options):
    """A model of independent starts and ends, and its logits [B, T, 2] of all tokens by NumPy."""
    model = QuestionAnswerer(ConvBertEncoder(tiny()), joint=False, **options)
    model.logits.kernel.assign(model.logits.kernel * 5)
    model.logits.bias.assign([0.5, -0.25])
    hidden = model.encoder(inputs())["sequence_output"].numpy()
    return model, hidden @ model.logits.kernel.numpy() + [0.5, -0.25]


@pytest.mark.parametrize("mask_logits", [True, False])
@pytest.mark.parametrize("beam_size", [3, 14])
def test_independent_starts_and_ends(beam_size, mask_logits):
    model, bare = independent(beam_size=beam_size, mask_logits=mask_logits)
    outputs = {name: value.numpy() for name, value in model(inputs()).items()}
    masked = bare - 1000 * ~ALLOWED[:, :, None]
    best = min(beam_size, LENGTH)
    for i, name in enumerate(("start", "end")):
        shown = (masked if mask_logits else bare)[..., i]
        np.testing.assert_allclose(outputs[f"{name}_logits"], shown, rtol=1e-4, atol=1e-5)
        expected = log_softmax(masked[..., i])  # the beam's are masked in any case
        order = np.argsort(-expected, axis=1)[:, :best]
        found = outputs[f"{name}_top_index"], outputs[f"{name}_top_log_probs"]
        if name == "end":  # the same ends for each start
            assert found[0].shape == (2, beam_size, beam_size)
            assert all((x == x[:, :1]).all() for x in found)
            found = [x[:, 0] for x in found]
        likely = np.take_along_axis(expected, order, axis=1)
        np.testing.assert_allclose(found[1][:, :best], likely, rtol=1e-4, atol=1e-4)
        sure = likely > -500
        np.testing.assert_array_equal(found[0][:, :best][sure], order[sure])
        assert (found[1][:, best:] == -1e9).all()


@pytest.mark.parametrize("answerable", [False, True])
@pytest.mark.parametrize("mask_logits", [True, False])
def test_losses_of_independent_starts_and_ends(mask_logits, answerable):
    model, bare = independent(mask_logits=mask_logits, answerable=answerable)
    masked = bare - 1000 * ~ALLOWED[:, :, None]
    batch = inputs(start_positions=np.array([4, 0]), end_positions=np.array([6, 9]))
    batch["is_impossible"] = np.array([0, 1])
    outputs = without_dropout(model)(batch, training=True)
    names = {"start_logits", "end_logits"} | ({"answerable_logit"} if answerable else set())
    assert outputs.keys() == names
    rows = np.arange(2)
    log_probs = log_softmax((masked if mask_logits else bare).transpose(0, 2, 1))
    expected = -(log_probs[rows, 0, [4, 0]] + log_probs[rows, 1, [6, 9]]) / 2
    if answerable:  # what may be chosen weighs the hidden states, whichever logits are shown
        hidden = model.encoder(batch)["sequence_output"].numpy()
        weights = np.exp(log_softmax(masked[..., 0]))
        features = np.concatenate([hidden[:, 0], np.einsum("bt,bth->bh", weights, hidden)], axis=-1)
        middle = gelu(features @ model.answerable_hidden.kernel.numpy())
        none = scipy.special.expit((middle @ model.answerable_logit.kernel.numpy())[:, 0])
        expected += 0.5 * -np.log([1 - none[0], none[1]])
    np.testing.assert_allclose(model.example_losses(outputs, batch), expected, rtol=1e-4)
    # The mask is a large part of the loss: an answer outside the context costs it.
    if mask_logits:
        batch["end_positions"] = np.array([6, 1])
        outputs = model(batch, training=True)
        assert model.example_losses(outputs, batch)[1] > 450


def test_a_head_keeps_whether_its_logits_are_masked(capsys):
    theirs, _ = independent(mask_logits=False)
    assert not QuestionAnswerer.from_config(theirs.get_config()).mask_logits
    assert not QuestionAnswerer.start_from(theirs, "x", beam_size=3).mask_logits
    ours = QuestionAnswerer.start_from(theirs, "x", joint=False, mask_logits=True)
    assert ours.mask_logits and capsys.readouterr().out == "x: its head is kept\n" * 2
    np.testing.assert_array_equal(ours.logits.kernel, theirs.logits.kernel)
    with pytest.raises(UserError, match="mask_logits=False is for joint=False"):
        QuestionAnswerer(theirs.encoder, mask_logits=False)
