"""Classifier and question answerer: logits, beam, losses, precision."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from convbert_tf import ConvBertEncoder, QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.console import UserError
from convbert_tf.modeling.functions import cross_entropy
from tests.modeling.encoder_test import tiny

LENGTH = 10
# The second segment is the context; the last two positions of the first example are padding.
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]], "int32")
MASK = np.array([[1] * 8 + [0] * 2, [1] * 10], "int32")
ALLOWED = (SEGMENTS * MASK).astype(bool) | (np.arange(LENGTH) == 0)


def inputs(length=LENGTH, **more):
    ids = np.random.default_rng(0).integers(5, 50, (2, LENGTH)).astype("int32")
    features = {"input_ids": ids, "input_mask": MASK, "segment_ids": SEGMENTS}
    return {name: value[:, :length] for name, value in features.items()} | more


def answerer(**options):
    keras.utils.set_random_seed(3)
    model = QuestionAnswerer(ConvBertEncoder(tiny()), **options)
    for layer in (model.start, model.end):
        layer.kernel.assign(layer.kernel * 5)
    return model


def gelu(x):
    return x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2


def log_softmax(x):
    return x - scipy.special.logsumexp(x, axis=-1, keepdims=True)


def all_log_probs(model, features):
    """log p(start) [B, T] and log p(end | start) [B, T, T], pair by pair in numpy."""
    hidden = model.encoder(features)["sequence_output"].numpy()
    excluded = 1000 * ~ALLOWED[:, : hidden.shape[1]]
    starts = log_softmax(hidden @ model.start.kernel.numpy()[:, 0] - excluded)
    ends = np.zeros((*starts.shape, starts.shape[1]))
    for b, start, end in np.ndindex(*ends.shape):
        pair = np.concatenate([hidden[b, start], hidden[b, end]])
        middle = gelu(pair @ model.end_hidden.kernel.numpy() + model.end_hidden.bias.numpy())
        ends[b, start, end] = (middle @ model.end.kernel.numpy())[0] - excluded[b, end]
    return starts, log_softmax(ends)


@pytest.mark.parametrize(("beam_size", "length"), [(3, 10), (10, 10), (20, 10), (8, 7)])
def test_the_beam_is_that_of_brute_force(beam_size, length):
    model, features = answerer(beam_size=beam_size), inputs(length)
    outputs = {name: value.numpy() for name, value in model(features).items()}
    starts, ends = all_log_probs(model, features)
    best = min(beam_size, length)
    for b in range(2):
        order = np.argsort(-starts[b])[:best]
        np.testing.assert_array_equal(outputs["start_top_index"][b, :best], order)
        np.testing.assert_allclose(
            outputs["start_top_log_probs"][b, :best], starts[b, order], rtol=1e-4, atol=1e-4
        )
        for rank, start in enumerate(order):
            end_order = np.argsort(-ends[b, start])[:best]
            found = outputs["end_top_index"][b, rank, :best]
            np.testing.assert_array_equal(found, end_order)
            np.testing.assert_allclose(
                outputs["end_top_log_probs"][b, rank, :best],
                ends[b, start, end_order],
                rtol=1e-4,
                atol=1e-4,
            )
    # Where the beam is longer than the input: positions behind it that cannot win.
    assert outputs["start_top_index"].shape == (2, beam_size)
    assert outputs["end_top_index"].shape == (2, beam_size, beam_size)
    assert (outputs["start_top_index"][:, best:] >= length).all()
    assert (outputs["start_top_log_probs"][:, best:] == -1e9).all()
    assert (outputs["end_top_log_probs"][:, :, best:] == -1e9).all()


def test_only_the_context_and_cls_are_chosen():
    outputs = answerer(beam_size=LENGTH)(inputs())
    for b in range(2):
        for name in ("start", "end"):
            index = outputs[f"{name}_top_index"][b].numpy()
            likely = outputs[f"{name}_top_log_probs"][b].numpy() > -500
            assert set(index[likely]) == set(np.flatnonzero(ALLOWED[b]))
    probabilities = tf.nn.softmax(outputs["start_logits"]).numpy()
    assert probabilities[~ALLOWED].max() < 1e-30


def test_beam_with_unknown_length_is_that_with_known_length():
    model, features = answerer(beam_size=12), inputs()
    spec = {name: tf.TensorSpec((None, None), "int32") for name in features}
    traced = tf.function(lambda x: model(x), input_signature=[spec])(features)
    for name, expected in model(features).items():
        if not name.endswith("index"):
            np.testing.assert_allclose(traced[name], expected, rtol=1e-5, atol=1e-5)


def without_dropout(model):
    for layer in model._flatten_layers():
        if "dropout" in layer.name:
            layer.rate = 0
    return model


@pytest.mark.parametrize("answerable", [False, True])
def test_question_losses_against_numpy(answerable):
    model = answerer(answerable=answerable)
    positions = {"start_positions": np.array([4, 0]), "end_positions": np.array([6, 9])}
    batch = inputs(**positions, is_impossible=np.array([0, 1]))
    outputs = model(batch, training=True)
    outputs = without_dropout(model)(batch, training=True)
    starts, ends = all_log_probs(model, batch)
    rows = np.arange(2)
    given_start = ends[rows, positions["start_positions"]]
    expected = starts[rows, [4, 0]] + given_start[rows, [6, 9]]
    expected = -expected / 2
    assert ("answerable_logit" in outputs) is answerable
    if answerable:
        hidden = model.encoder(batch)["sequence_output"].numpy()
        mean_start = np.einsum("bt,bth->bh", np.exp(starts), hidden)
        features = np.concatenate([hidden[:, 0], mean_start], axis=-1)
        middle = gelu(features @ model.answerable_hidden.kernel.numpy())
        logits = (middle @ model.answerable_logit.kernel.numpy())[:, 0]
        np.testing.assert_allclose(outputs["answerable_logit"], logits, rtol=1e-4, atol=1e-5)
        none = scipy.special.expit(logits)
        expected += 0.25 * -np.log([1 - none[0], none[1]])
    losses = model.example_losses(outputs, batch, answerable_weight=0.25)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_classifier_logits_and_losses(num_classes):
    model = TextClassifier(ConvBertEncoder(tiny()), num_classes)
    batch = inputs(label_ids=np.array([0.4, 2.0]) if num_classes == 1 else np.array([0, 2]))
    logits = model(batch).numpy()
    pooled = model.encoder(batch)["sequence_output"].numpy()[:, 0]
    kernel, bias = model.logits.get_weights()
    np.testing.assert_allclose(logits, pooled @ kernel + bias, rtol=1e-5, atol=1e-5)
    if num_classes == 1:
        expected = (logits[:, 0] - [0.4, 2.0]) ** 2
    else:
        expected = -log_softmax(logits)[[0, 1], [0, 2]]
        weighted = model.example_losses(logits, batch, class_weights=[2.0, 9.0, 0.5])
        np.testing.assert_allclose(weighted, expected * [2.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(model.example_losses(logits, batch), expected, rtol=1e-5)


def test_the_loss_of_several_labels_is_that_of_each(tmp_path):
    model = TextClassifier(ConvBertEncoder(tiny()), 3, labels=["a", "b", "c"], multi_label=True)
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    logits = 30 * model(inputs()).numpy()
    odds = np.where(labels, logits, -logits)
    expected = np.log1p(np.exp(-odds)).sum(axis=1)
    losses = model.example_losses(logits, inputs(label_ids=labels))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    model.save_to_preset(tmp_path)
    again = TextClassifier.from_preset(tmp_path)
    assert again.multi_label and again.labels == ["a", "b", "c"]
    # Of the same labels one at a time it is another head.
    assert TextClassifier.start_from(again, multi_label=True) is not again
    one = TextClassifier.start_from(again, multi_label=False)
    assert not one.multi_label and (one.logits.kernel.numpy() != again.logits.kernel.numpy()).any()
    with pytest.raises(UserError, match="multi_label needs at least 2 labels, got num_classes 1"):
        TextClassifier(ConvBertEncoder(tiny()), 1, multi_label=True)


def test_a_hidden_layer_is_dense_activation_dense():
    model = TextClassifier(ConvBertEncoder(tiny(hidden_act="relu")), 3, hidden_layer=True)
    pooled = model.encoder(inputs())["sequence_output"].numpy()[:, 0]
    kernel, bias = model.hidden.get_weights()
    kernel = kernel + np.random.default_rng(0).normal(size=kernel.shape)
    model.hidden.set_weights([kernel, bias + 0.5])
    expected = np.maximum(pooled @ kernel + 0.5, 0) @ model.logits.kernel.numpy()
    np.testing.assert_allclose(model(inputs()), expected, rtol=1e-4, atol=1e-5)
    # Dropout is before each of the two layers, while training.
    model.dropout.rate = 0.999
    np.testing.assert_allclose(model(inputs(), training=True), np.zeros((2, 3)), atol=1e-6)


def test_token_classifier_logits_and_losses():
    model = TokenClassifier(ConvBertEncoder(tiny()), 4)
    labels = np.random.default_rng(1).integers(0, 4, (2, LENGTH))
    labels[0, 3:] = -100
    batch = inputs(label_ids=labels)
    logits = model(batch).numpy()
    hidden = model.encoder(batch)["sequence_output"].numpy()
    kernel, bias = model.logits.get_weights()
    np.testing.assert_allclose(logits, hidden @ kernel + bias, rtol=1e-4, atol=1e-5)
    log_probs = log_softmax(logits)
    expected = [
        -sum(log_probs[b, t, labels[b, t]] for t in range(LENGTH) if labels[b, t] >= 0)
        for b in range(2)
    ]
    np.testing.assert_allclose(model.example_losses(logits, batch), expected, rtol=1e-5)


def test_a_head_goes_along_where_its_labels_are_the_same(capsys):
    old = TextClassifier(ConvBertEncoder(tiny()), 2, labels=["no", "yes"], hidden_layer=True)
    new = TextClassifier.start_from(old, "it", num_classes=2, labels=["no", "yes"], dropout=0.3)
    assert new.dropout.rate == 0.3 and new.hidden_layer and new.encoder is old.encoder
    np.testing.assert_array_equal(new.logits.kernel, old.logits.kernel)
    np.testing.assert_array_equal(new.hidden.kernel, old.hidden.kernel)
    assert capsys.readouterr().out == "it: its head is kept\n"
    assert TextClassifier.start_from(old) is old
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"num_classes": 3, "labels": ["a", "b", "c"]},
            "num_classes 2 -> 3; labels ['no', 'yes'] -> ['a', 'b', 'c']",
        ),
        ({"labels": ["yes", "no"]}, "labels ['no', 'yes'] -> ['yes', 'no']"),
        ({"labels": None}, "labels ['no', 'yes'] -> None"),
        ({"hidden_layer": True}, "hidden_layer False -> True"),
    ],
)
def test_a_head_of_other_labels_is_dropped_and_told(capsys, options, reason):
    old = TextClassifier(ConvBertEncoder(tiny()), 2, labels=["no", "yes"])
    new = TextClassifier.start_from(old, "runs/x", **options)
    assert new.encoder is old.encoder
    assert np.abs(new.logits.kernel.numpy()).max() > 0
    assert capsys.readouterr().out == (
        f"runs/x: its head is dropped ({reason}); the new one has random weights\n"
    )


def test_another_kind_of_head_is_dropped_and_told(capsys):
    old = QuestionAnswerer(ConvBertEncoder(tiny()), joint=False)
    assert TextClassifier.start_from(old, "x", num_classes=2).encoder is old.encoder
    assert "x: its head is dropped (it is a QuestionAnswerer)" in capsys.readouterr().out
    assert not QuestionAnswerer.start_from(old, "x", answerable=False, beam_size=3).joint
    assert capsys.readouterr().out == "x: its head is kept\n"
    assert QuestionAnswerer.start_from(old, "x", answerable=True).answerable
    assert "answerable False -> True" in capsys.readouterr().out
    TextClassifier.start_from(old.encoder, num_classes=2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_heads_compute_in_float32_under_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = answerer(beam_size=4)
        classifier = TextClassifier(ConvBertEncoder(tiny()), 3)
        outputs, logits = model(inputs()), classifier(inputs())
    finally:
        keras.config.set_dtype_policy(before)
    assert logits.dtype == outputs["start_logits"].dtype == "float32"
    hidden = model.encoder(inputs())["sequence_output"]
    assert hidden.dtype == policy.removeprefix("mixed_")
    starts, ends = all_log_probs(model, inputs())
    best = outputs["start_top_index"].numpy()
    expected = np.sort(np.take_along_axis(ends, best[:, :, None], axis=1))[:, :, ::-1][:, :, :4]
    np.testing.assert_allclose(outputs["end_top_log_probs"], expected, rtol=1e-4, atol=1e-4)


def test_compiled_is_eager():
    model, features = answerer(answerable=True, beam_size=4), inputs()
    compiled = tf.function(lambda x: model(x), jit_compile=True)
    for name, value in compiled({k: tf.constant(v) for k, v in features.items()}).items():
        np.testing.assert_allclose(value, model(features)[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (TextClassifier, {"num_classes": 2, "dropout": 0.3, "labels": ["no", "yes"]}),
        (TextClassifier, {"num_classes": 2, "hidden_layer": True}),
        (TokenClassifier, {"num_classes": 2, "dropout": 0.3, "labels": ["no", "yes"]}),
        (QuestionAnswerer, {"answerable": True, "beam_size": 5}),
        (QuestionAnswerer, {"answerable": True, "joint": False}),
        (QuestionAnswerer, {"joint": False, "mask_logits": False}),
    ],
)
def test_config_round_trip(cls, options):
    model = cls(ConvBertEncoder(tiny()), **options, name="head")
    written = keras.saving.serialize_keras_object(model)
    for copy in (
        cls.from_config(model.get_config()),
        keras.saving.deserialize_keras_object(written),
    ):
        config = copy.get_config()
        assert {key: config[key] for key in options} == options and config["name"] == "head"
        assert copy.encoder.config == model.encoder.config
        copy.set_weights(model.get_weights())
        for value, expected in zip(
            tf.nest.flatten(copy(inputs())), tf.nest.flatten(model(inputs())), strict=True
        ):
            np.testing.assert_array_equal(value, expected)


def test_cross_entropy_and_its_gradient_without_static_shapes():
    logits = tf.random.stateless_normal((3, 7), (0, 1)) * 5
    labels = tf.constant([0, 6, 3])

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = cross_entropy(logits, labels)
            total = tf.reduce_sum(losses * [1.0, 2.0, 3.0])
        return losses, tape.gradient(total, logits)

    losses, slope = gradient(logits)
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    softmax = tf.nn.softmax(logits) - tf.one_hot(labels, 7)
    np.testing.assert_allclose(slope, softmax * [[1.0], [2.0], [3.0]], atol=1e-6)
