"""Inputs and labels that a model cannot take are told in plain sentences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import ConvBertEncoder, TextClassifier
from convbert_tf.console import UserError
from tests.modeling.encoder_test import tiny
from tests.modeling.heads_test import inputs


@pytest.fixture(scope="module")
def compiled():
    model = TextClassifier(ConvBertEncoder(tiny()), 2, labels=["no", "yes"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("labels", [[0, 1], (0, 1), np.array([0, 1])])
def test_labels_may_be_a_list(compiled, labels):
    kept = compiled.get_weights()
    losses = [compiled.fit(inputs(), labels, verbose=0).history["loss"][0]]
    compiled.set_weights(kept)
    assert np.isfinite(losses).all() and np.isfinite(compiled.evaluate(inputs(), labels, verbose=0))
    validation = (inputs(), labels)
    compiled.fit(inputs(), labels, validation_data=validation, verbose=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["no", "yes"], "the labels are texts; give the numbers of the classes, 0 to 1"),
        (np.array(["no", "yes"]), "the labels are texts"),
        (np.array(["no", "yes"], object), "the labels are texts"),
        ([0, 2], "labels must be from 0 to 1; there is a 2"),
        ([-1, 1], "labels must be from 0 to 1; there is a -1"),
    ],
)
def test_labels_that_are_none_are_said(compiled, labels, message):
    for use in (compiled.fit, compiled.evaluate):
        with pytest.raises(UserError, match=message):
            use(inputs(), labels, verbose=0)
    with pytest.raises(UserError, match=message):
        compiled.fit(inputs(), [0, 1], validation_data=(inputs(), labels), verbose=0)


TEXTS = ["a text", "another"]


@pytest.mark.parametrize("texts", [TEXTS, tuple(TEXTS), np.array(TEXTS), "a text", [("a", "b")]])
def test_texts_are_no_inputs(compiled, texts):
    message = "the model got texts; expected is a dict of input_ids.*TextPreprocessor"
    uses = (compiled, compiled.encoder, compiled.predict, lambda x: compiled.fit(x, [0, 1]))
    for use in uses:
        with pytest.raises(UserError, match=message):
            use(texts)
    with pytest.raises(UserError, match="input_ids holds texts"):
        compiled({"input_ids": texts})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", -1, "input_ids must be from 0 to 49; there is a -1"),
        ("input_ids", 50, "input_ids must be from 0 to 49; there is a 50"),
        ("segment_ids", 2, "segment_ids must be from 0 to 1; there is a 2"),
        ("input_mask", 2, "input_mask must be from 0 to 1; there is a 2"),
    ],
)
def test_values_out_of_range_are_said(compiled, name, value, message):
    wrong = {key: np.array(values) for key, values in inputs().items()}
    wrong[name][1, 2] = value
    for use in (compiled, compiled.encoder, compiled.predict, lambda x: compiled.fit(x, [0, 1])):
        with pytest.raises(UserError, match=message):
            use(wrong)
    # In a graph nothing is known of them, and nothing is added for them.
    ops_of = tf.function(compiled).get_concrete_function(inputs()).graph.get_operations()
    assert not [op for op in ops_of if "Assert" in op.type]


def test_inputs_are_a_dict(compiled):
    with pytest.raises(UserError, match="the model got a ndarray; expected is a dict"):
        compiled(np.ones((2, 8), "int32"))
    with pytest.raises(UserError, match="the model got a dict without input_ids"):
        compiled({"ids": np.ones((2, 8), "int32")})


@pytest.mark.parametrize(
    ("name", "theirs", "message"),
    [
        ("input_mask", "attention_mask", "attention_mask, a name of Hugging Face's: call it input"),
        ("segment_ids", "token_type_ids", "Hugging Face's: call it segment_ids"),
        ("segment_ids", "segments", "got 'segments', which it does not know, and no segment_ids"),
        (None, "position_ids", "position_ids, a name of Hugging Face's: there is no such input"),
    ],
)
def test_a_name_that_no_model_looks_at_is_refused(compiled, name, theirs, message):
    wrong = dict(inputs())
    wrong[theirs] = wrong.pop(name) if name else wrong["input_ids"]
    in_graph = tf.function(compiled, autograph=False)
    in_dataset = lambda x: compiled.predict(tf.data.Dataset.from_tensors(x), verbose=0)  # noqa: E731
    for use in (compiled, compiled.encoder, in_graph, compiled.predict, in_dataset):
        with pytest.raises(UserError, match=message):
            use(wrong)
    # Labels and the like may be in a batch that has all inputs.
    more = inputs(label_ids=np.array([0, 1]))
    np.testing.assert_array_equal(compiled(more), compiled(inputs()))


def test_inputs_have_one_shape(compiled):
    x = {key: np.array(values) for key, values in inputs().items()}
    one_row = {key: values[0] for key, values in x.items()}
    in_graph = tf.function(compiled, autograph=False)
    short = x | {"segment_ids": x["segment_ids"][:, :-1]}
    for use in (compiled, compiled.encoder, in_graph, compiled.predict):
        with pytest.raises(UserError, match=r"input_ids must be \[batch, tokens\].*x\[None\]"):
            use(one_row)
        with pytest.raises(UserError, match=r"segment_ids has shape \(.*, but input_ids .* agree"):
            use(short)
