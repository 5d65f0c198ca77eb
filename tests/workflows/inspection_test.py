"""Attention and kernels of texts, one by one and on average."""

import dataclasses

import keras
import numpy as np
import pytest

from convbert_tf.console import UserError
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import inspection
from tests.tools_test import run_tool
from tests.workflows.evaluation_test import MODEL, VOCAB

TEXTS = ["a b c d e f g h i j", "k l m", "n o p q r s"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n")
    return WordPieceTokenizer(str(path))


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return ConvBertEncoder(dataclasses.replace(MODEL, num_hidden_layers=2, num_attention_heads=4))


def test_averages_are_the_means_of_what_single_windows_have(encoder, tokenizer):
    averages = inspection.average(encoder, tokenizer, TEXTS, length=5)
    windows = ["a b c", "d e f", "g h i", "k l m", "n o p", "q r s"]
    each = [inspection.inspect(encoder, tokenizer, window) for window in windows]
    assert averages.number == 6 and averages.attention.shape == (2, 2, 5, 5)
    expected = np.mean([one.attention for one in each], axis=0)
    np.testing.assert_allclose(averages.attention, expected, atol=1e-6)
    np.testing.assert_allclose(averages.attention.sum(axis=-1), 1, atol=1e-5)
    expected = np.mean([one.kernels.mean(axis=2) for one in each], axis=0)
    np.testing.assert_allclose(averages.kernels, expected, atol=1e-6)
    few = inspection.average(encoder, tokenizer, TEXTS, length=5, most=1)
    np.testing.assert_allclose(few.attention, each[0].attention, atol=1e-6)


def test_a_picture_has_a_row_a_layer_and_a_panel_a_head(encoder, tokenizer):
    averages = inspection.average(encoder, tokenizer, TEXTS, length=5)
    panels = inspection.draw_averages(averages).axes
    titles = ["layer 1, head 1", "layer 1, head 2", "kernels"]
    assert [panel.get_title() for panel in panels[:3]] == titles and len(panels) == 6
    lines = [line.get_ydata() for line in panels[2].lines[:2]]
    np.testing.assert_allclose(lines, averages.kernels[0])
    shown = panels[1].images[0].get_array()
    np.testing.assert_allclose(shown, averages.attention[0, 1, 1:4, 1:4])
    without = ConvBertEncoder(dataclasses.replace(MODEL, conv_type="noconv", head_ratio=1))
    averages = inspection.average(without, tokenizer, TEXTS, length=5)
    assert averages.kernels is None and len(inspection.draw_averages(averages).axes) == 2


def test_what_cannot_be_averaged_is_refused(encoder, tokenizer):
    with pytest.raises(UserError, match="no text has 11 tokens"):
        inspection.average(encoder, tokenizer, TEXTS, length=13)
    with pytest.raises(UserError, match="between 3 and the model's 32 positions: 33"):
        inspection.average(encoder, tokenizer, TEXTS, length=33)


@pytest.mark.slow
def test_the_tool_draws_what_a_preset_looks_at(encoder, tokenizer, tmp_path):
    encoder.save_to_preset(str(tmp_path / "preset"), tokenizer.vocab_file)
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    flags = [f"--preset={tmp_path}/preset", f"--text={tmp_path}/text.txt", "--length=5"]
    run = run_tool("plot_attention", *flags, f"--output_file={tmp_path}/it.png")
    assert run.stdout.splitlines()[-1] == f"{tmp_path}/it.png is drawn, the mean of 6 windows"
    assert (tmp_path / "it.png").read_bytes()[:4] == b"\x89PNG"
    run = run_tool("plot_attention", *flags, f"--output_file={tmp_path}/it.bmp")
    assert run.returncode == 1 and "must end in .png, .svg or .pdf" in run.stderr
