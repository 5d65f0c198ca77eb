"""Choosing positions, writing samples back, sampling."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from convbert_tf import PretrainingConfig
from convbert_tf.modeling import masking

TOKENS = masking.SpecialTokens(cls=2, sep=3, mask=4)
SPECIAL = [0, 2, 3, 4]


def features(batch, length, num_tokens=None, seed=0):
    """[CLS] words [SEP] words [SEP] padding, with a stray [MASK]; `num_tokens` [B] real tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 1000, (batch, length)).astype("int32")
    if num_tokens is None:
        num_tokens = rng.integers(8, length + 1, batch)
    num_tokens = np.broadcast_to(num_tokens, (batch,))[:, None]
    ids[:, 0] = TOKENS.cls
    ids[:, 2] = TOKENS.mask
    columns = np.arange(length)
    ids[(columns == num_tokens - 1) | (columns == num_tokens // 2)] = TOKENS.sep
    mask = (columns < num_tokens).astype("int32")
    return {"input_ids": ids * mask, "input_mask": mask}


def mask_inputs(inputs, seed=1, **options):
    batch, length = inputs["input_ids"].shape
    uniforms = np.random.default_rng(seed).random((batch, 2, length), "float32")
    config = PretrainingConfig(**options)
    return masking.MaskedInputs(
        *map(np.asarray, masking.mask_inputs(inputs, uniforms, TOKENS, config))
    )


@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize("mask_prob", [0.15, 0.3])
def test_as_many_positions_as_asked_and_never_a_special_token(with_replacement, mask_prob):
    inputs = features(64, 50)
    ids, num_tokens = inputs["input_ids"], inputs["input_mask"].sum(1)
    masked = mask_inputs(inputs, mask_prob=mask_prob, masking_with_replacement=with_replacement)
    slots = int((mask_prob + 0.005) * 50)
    assert masked.masked_lm_positions.shape == (64, slots)
    wanted = np.clip(np.round(num_tokens * mask_prob), 1, slots)
    np.testing.assert_array_equal(masked.masked_lm_weights.sum(1), wanted)
    used = masked.masked_lm_weights > 0
    assert not masked.masked_lm_positions[~used].any() and not masked.masked_lm_ids[~used].any()
    assert not np.isin(masked.masked_lm_ids[used], SPECIAL).any()
    there = np.take_along_axis(ids, masked.masked_lm_positions, 1)
    np.testing.assert_array_equal(masked.masked_lm_ids[used], there[used])
    # Nothing but chosen positions changes, and only to [MASK].
    rows, columns = np.nonzero(masked.masked_input_ids != ids)
    assert (masked.masked_input_ids[rows, columns] == TOKENS.mask).all() and len(rows) > 64
    chosen = {(b, p) for b in range(64) for p in masked.masked_lm_positions[b][used[b]]}
    assert set(zip(rows, columns, strict=True)) <= chosen


def test_positions_are_distinct_unless_drawn_with_replacement():
    def duplicates(**options):
        masked = mask_inputs(features(200, 40), **options)
        return sum(
            int(weights.sum()) - len(set(positions[weights > 0]))
            for positions, weights in zip(
                masked.masked_lm_positions, masked.masked_lm_weights, strict=True
            )
        )

    assert duplicates() == 0
    assert duplicates(masking_with_replacement=True) > 10


@pytest.mark.parametrize("with_replacement", [False, True])
def test_every_candidate_is_as_likely(with_replacement):
    inputs = features(3000, 20, 18)
    masked = mask_inputs(inputs, masking_with_replacement=with_replacement)
    used = masked.masked_lm_weights > 0
    counts = np.bincount(masked.masked_lm_positions[used], minlength=20)
    candidates = [p for p in range(18) if p not in (0, 2, 9, 17)]
    assert counts[candidates].sum() == used.sum() == 3000 * 3
    assert scipy.stats.chisquare(counts[candidates]).pvalue > 1e-3


# --- whole words ---

CONTINUATIONS = np.arange(1000) % 3 == 0  # of features' words, a third
WHOLE_WORDS = TOKENS._replace(continuations=CONTINUATIONS)


def whole_words(ids, mask):
    """Lists of positions, one for each word of a row, by the rule as it is told."""
    found, before = [], False
    for place, token in enumerate(ids):
        candidate = bool(mask[place]) and token not in TOKENS[:3]
        if candidate and CONTINUATIONS[token] and before:
            found[-1].append(place)
        elif candidate:
            found.append([place])
        before = candidate
    return found


def reference_mask(ids, mask, uniforms, config):
    """One row, word after word."""
    wanted = round(sum(mask) * config.mask_prob)
    wanted = min(max(wanted, 1), config.max_predictions_per_seq(len(ids)))
    positions, masked = [], list(ids)
    words = sorted(whole_words(ids, mask), key=lambda word: -uniforms[0][word[0]])
    for rank, word in enumerate(words):
        if len(positions) + len(word) <= wanted:
            positions += word
            if uniforms[1][rank] < masking.REPLACED:
                for place in word:
                    masked[place] = TOKENS.mask
    return positions, masked


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("length", "mask_prob"), [(9, 0.15), (40, 0.15), (128, 0.15), (30, 0.4)])
def test_whole_words_are_those_of_the_reference(length, mask_prob, compiled):
    inputs = features(700, length, seed=length)
    rng = np.random.default_rng(length)
    # Words of several pieces, also at the edges, and rows that are one long word.
    longer = rng.random(inputs["input_ids"].shape) < rng.choice([0.2, 0.7, 1], 700)[:, None]
    special = np.isin(inputs["input_ids"], SPECIAL)
    inputs["input_ids"] += np.where(longer & ~special, -inputs["input_ids"] % 3, 0).astype("int32")
    inputs["input_ids"] = np.where(inputs["input_ids"] > 999, 999, inputs["input_ids"])
    uniforms = rng.random((700, 2, length), "float32")
    uniforms[:50, 0] = np.round(uniforms[:50, 0], 1)  # ties
    config = PretrainingConfig(mask_prob=mask_prob, whole_word_masking=True)

    def run(features, uniforms):
        return masking.mask_inputs(features, uniforms, WHOLE_WORDS, config)

    run = tf.function(run, jit_compile=True) if compiled else run
    tensors = {name: tf.constant(values) for name, values in inputs.items()}
    masked = masking.MaskedInputs(*map(np.asarray, run(tensors, tf.constant(uniforms))))
    used = masked.masked_lm_weights > 0
    numbers = set()
    for row in range(700):
        ids, mask = inputs["input_ids"][row], inputs["input_mask"][row]
        positions, expected = reference_mask(ids.tolist(), mask, uniforms[row], config)
        assert masked.masked_lm_positions[row][used[row]].tolist() == positions
        assert masked.masked_input_ids[row].tolist() == expected
        assert masked.masked_lm_ids[row][used[row]].tolist() == ids[positions].tolist()
        assert not masked.masked_lm_ids[row][~used[row]].any()
        numbers.add(len(positions))
    assert len(numbers) > 1 or length == 9


def test_words_that_are_too_long_are_passed_over():
    ids = np.full((2, 24), 6, "int32")  # pieces of one long word
    ids[:, 0], ids[1, 13:] = TOKENS.cls, 10  # in the second row, short ones after it
    inputs = {"input_ids": ids, "input_mask": np.ones_like(ids)}
    uniforms = np.random.default_rng(0).random((2, 2, 24), "float32")
    uniforms[:, 0, 1] = 0.9999  # the long word is tried first
    config = PretrainingConfig(whole_word_masking=True, mask_prob=0.3)
    masked = masking.mask_inputs(inputs, uniforms, WHOLE_WORDS, config)
    assert np.sum(masked.masked_lm_weights, axis=1).tolist() == [0, 7]
    assert np.min(masked.masked_lm_positions[1]) >= 13


def test_words_of_one_piece_are_masked_as_without_whole_words():
    inputs = features(200, 50)
    none_inside = TOKENS._replace(continuations=np.zeros(1000, bool))
    uniforms = np.random.default_rng(1).random((200, 2, 50), "float32")
    config = PretrainingConfig(whole_word_masking=True)
    expected = mask_inputs(inputs)
    masked = masking.mask_inputs(inputs, uniforms, none_inside, config)
    for name, values in expected._asdict().items():
        np.testing.assert_array_equal(getattr(masked, name), values, err_msg=name)


def test_special_tokens_of_a_vocabulary():
    vocab = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "a", "##b", "##", "#", "[SEP]", "####"]
    tokens = masking.special_tokens(vocab)
    assert tokens[:3] == (3, 8, 2)
    assert tokens.continuations.nonzero()[0].tolist() == [5, 9]


def test_85_percent_become_mask():
    inputs = features(2000, 60)
    masked = mask_inputs(inputs)
    replaced = (masked.masked_input_ids != inputs["input_ids"]).sum()
    total = masked.masked_lm_weights.sum()
    assert abs(replaced - 0.85 * total) < 4 * np.sqrt(total * 0.85 * 0.15)


@pytest.mark.parametrize("with_replacement", [False, True])
def test_fewer_candidates_than_slots(with_replacement):
    ids = np.full((3, 40), TOKENS.sep, "int32")
    ids[1, [5, 7]] = 9
    ids[2, 6] = 8
    inputs = {"input_ids": ids, "input_mask": np.ones_like(ids)}
    masked = mask_inputs(inputs, masking_with_replacement=with_replacement)
    used = masked.masked_lm_weights > 0
    expected = [0, 6, 6] if with_replacement else [0, 2, 1]
    np.testing.assert_array_equal(used.sum(1), expected)
    assert set(masked.masked_lm_positions[1][used[1]]) <= {5, 7}
    assert set(masked.masked_lm_positions[2][used[2]]) == {6}
    np.testing.assert_array_equal(masked.masked_input_ids[0], ids[0])


def test_scatter_update():
    sequence = np.array([[10, 11, 12, 13], [20, 21, 22, 23]], "int32")
    updates = np.array([[5, 8, 99, 7], [1, 2, 4, 50]], "int32")
    positions = np.array([[2, 2, 0, 3], [1, 1, 1, 0]], "int32")
    updated, written = masking.scatter_update(sequence, updates, positions)
    # The floor of (5 + 8) / 2 and of (1 + 2 + 4) / 3; position 0 is never written.
    np.testing.assert_array_equal(updated, [[10, 11, 6, 7], [20, 2, 22, 23]])
    np.testing.assert_array_equal(written, [[0, 0, 1, 1], [0, 1, 0, 0]])
    assert updated.dtype == "int32" and written.dtype == "int32"


@pytest.mark.parametrize("vocab_size", [40, 300])
def test_samples_follow_the_softmax(vocab_size):
    rng, draws = np.random.default_rng(5), 20000
    logits = rng.normal(size=vocab_size).astype("float32") * 1.5
    uniforms = rng.random((1, draws), "float32")
    samples = masking.sample(np.broadcast_to(logits, (1, draws, vocab_size)), uniforms)
    expected = scipy.special.softmax(logits.astype("float64")) * draws
    likely = expected > np.sort(expected)[2]  # the three rarest tokens count together
    counts = np.bincount(np.ravel(samples), minlength=vocab_size)
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(expected[likely], expected[~likely].sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [7, 128, 300])
def test_a_sample_is_where_the_cumulative_probability_passes_u(vocab_size):
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(2, 50, vocab_size)).astype("float32")
    uniforms = rng.random((2, 50), "float32")
    uniforms[:, 0], uniforms[:, 1] = 0, 0.999999
    samples = masking.sample(logits, uniforms).numpy()
    cumulative = np.cumsum(scipy.special.softmax(logits.astype("float64"), axis=-1), axis=-1)
    above = np.take_along_axis(cumulative, samples[..., None], -1)[..., 0]
    below = np.where(
        samples > 0,
        np.take_along_axis(cumulative, np.maximum(samples - 1, 0)[..., None], -1)[..., 0],
        0,
    )
    assert (below - 1e-5 <= uniforms).all() and (uniforms <= above + 1e-5).all()
    assert (samples[:, 0] == 0).all()
    compiled = tf.function(masking.sample, jit_compile=True)(
        tf.constant(logits), tf.constant(uniforms)
    )
    assert np.mean(compiled.numpy() != samples) < 0.02


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999, np.nextafter(np.float32(1), 0)])
@pytest.mark.parametrize("vocab_size", [100, 128, 300])
def test_an_impossible_token_is_never_sampled(vocab_size, uniform):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(4, 500, vocab_size)).astype("float32")
    logits[0, :, :3] -= 1000
    logits[1, :, -1] -= 1000  # where rounding at the upper end would lead
    logits[2, :, :130] = np.where(np.arange(vocab_size)[:130] == 60, 0, -2000)
    logits[3, :, 127 - vocab_size :] -= 1000
    samples = masking.sample(logits, np.full((4, 500), uniform, "float32")).numpy()
    chosen = np.take_along_axis(logits, samples[:, :, None], -1)
    assert (chosen > -500).all()
