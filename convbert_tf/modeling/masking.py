"""Masking of the generator's input and writing its samples back; no TensorFlow.

All randomness is an argument, `uniforms` in [0, 1), so that a step is a pure function of its batch.
Axes as in layers.py.
"""

import collections

import numpy as np
from keras import ops

# `continuations`, for whole-word masking alone: bool [V], True for the pieces inside a word.
SpecialTokens = collections.namedtuple(
    "SpecialTokens", "cls sep mask continuations", defaults=[None]
)

# Of the chosen positions this share becomes [MASK]; the rest keep their token, as in the original.
REPLACED = 0.85

MaskedInputs = collections.namedtuple(
    "MaskedInputs",
    [
        "masked_input_ids",  # [B, T]
        "masked_lm_positions",  # [B, M]; 0 in unused slots
        "masked_lm_ids",  # [B, M], the tokens that stood there; 0 in unused slots
        "masked_lm_weights",  # float32 [B, M]; 1 for used slots
    ],
)


def special_tokens(vocab):
    """SpecialTokens of a vocabulary (a list of pieces); a word's later pieces begin with ##.

    Of a piece that is on several lines the last one has the id.
    """
    continuations = np.array([piece.startswith("##") and len(piece) > 2 for piece in vocab])
    ids = {piece: index for index, piece in enumerate(vocab)}
    return SpecialTokens(ids["[CLS]"], ids["[SEP]"], ids["[MASK]"], continuations)


def mask_inputs(features, uniforms, special_tokens, config):
    """Chooses positions to predict and hides most of them.

    Of an input with n tokens clip(round(n * mask_prob), 1, M) are chosen; never [CLS], [SEP],
    [MASK] or padding. Without replacement by default; `masking_with_replacement` draws as the
    original does, so that a position may fill several slots. With `whole_word_masking`, that number
    is the most that are chosen: see `_draw_whole_words`.

    Args:
        features: `input_ids`, `input_mask` int [B, T].
        uniforms: float32 [B, 2, T]: row 0 chooses the positions, row 1 which become [MASK].
        special_tokens: SpecialTokens; with `continuations` for whole-word masking.
        config: PretrainingConfig.

    Returns:
        MaskedInputs. With fewer candidates than wanted, the rest of the slots is unused.
    """
    input_ids, input_mask = features["input_ids"], features["input_mask"]
    slots = config.max_predictions_per_seq(input_ids.shape[1])
    candidates = ops.cast(input_mask, "bool")
    for token in special_tokens[:3]:
        candidates = ops.logical_and(candidates, input_ids != token)
    num_candidates = ops.sum(ops.cast(candidates, "int32"), axis=-1)
    num_tokens = ops.sum(ops.cast(input_mask, "float32"), axis=-1)
    wanted = ops.clip(ops.cast(ops.round(num_tokens * config.mask_prob), "int32"), 1, slots)
    draws = uniforms[:, 1, :slots]
    if config.whole_word_masking:
        inside = ops.take(ops.convert_to_tensor(special_tokens.continuations), input_ids, axis=0)
        positions, ranks, wanted = _draw_whole_words(
            candidates, inside, wanted, uniforms[:, 0], slots
        )
        draws = ops.take_along_axis(uniforms[:, 1], ranks, axis=1)  # one for the whole word
    elif config.masking_with_replacement:
        positions = _draw_with_replacement(candidates, num_candidates, uniforms[:, 0, :slots])
        wanted = ops.where(num_candidates > 0, wanted, 0)
    else:
        # The candidates with the largest uniforms are a uniform draw without replacement.
        scores = ops.where(candidates, uniforms[:, 0], -1.0)
        positions = ops.cast(ops.top_k(scores, slots)[1], "int32")
        wanted = ops.minimum(wanted, num_candidates)

    used = ops.cast(ops.arange(slots)[None] < wanted[:, None], "int32")  # [B, M]
    positions = positions * used
    masked_lm_ids = ops.take_along_axis(input_ids, positions, axis=1) * used
    replaced = positions * ops.cast(draws < REPLACED, "int32")
    mask_tokens = ops.full_like(positions, special_tokens.mask)
    return MaskedInputs(
        masked_input_ids=scatter_update(input_ids, mask_tokens, replaced)[0],
        masked_lm_positions=positions,
        masked_lm_ids=masked_lm_ids,
        masked_lm_weights=ops.cast(used, "float32"),
    )


def _draw_with_replacement(candidates, num_candidates, uniforms):
    """The position of the floor(u * n)-th candidate: candidates [B, T], uniforms [B, M]."""
    rank = ops.cast(uniforms * ops.cast(num_candidates, "float32")[:, None], "int32")
    counts = ops.cumsum(ops.cast(candidates, "int32"), axis=-1)  # [B, T]
    before = counts[:, None] <= rank[:, :, None]  # [B, M, T]
    return ops.minimum(ops.sum(ops.cast(before, "int32"), axis=-1), candidates.shape[1] - 1)


def _draw_whole_words(candidates, inside, limit, uniforms, slots):
    """Draws words, in random order, as long as their tokens together stay within the limit.

    A word is a candidate and the continuations that follow it directly; a continuation that
    follows no candidate (at the start of a segment that was cut within a word) begins a word. The
    words are tried in decreasing order of the uniform of their first token. A word with more
    tokens than are left of the limit is skipped. So an input may get fewer tokens than the limit,
    and none if all its words are longer.

    Args:
        candidates: bool [B, T].
        inside: bool [B, T], whether a token is a continuation.
        limit: int [B], at most `slots`.
        uniforms: float32 [B, T].
        slots: M.

    Returns:
        Positions int [B, M], word by word, 0 in unused slots; which word in the order of trial
        each belongs to, int [B, M]; and the number of slots used, int [B].
    """
    length = candidates.shape[1]
    columns = ops.arange(length, dtype="int32")
    real = ops.cast(candidates, "int32")
    follows = ops.pad(real[:, :-1], [[0, 0], [1, 0]]) > 0
    starts = ops.logical_and(candidates, ops.logical_not(ops.logical_and(inside, follows)))
    # Words in the order of the text: [B, T], as many as there are at most; T where there is none.
    places = ops.sort(ops.where(starts, columns, length), axis=-1)
    before = ops.pad(ops.cumsum(real, axis=-1), [[0, 0], [1, 0]])  # [B, T + 1] candidates
    before = ops.take_along_axis(before, places, axis=1)
    total = ops.sum(real, axis=-1, keepdims=True)
    lengths = ops.concatenate([before[:, 1:], total], axis=1) - before
    keys = ops.pad(uniforms, [[0, 0], [0, 1]], constant_values=-1.0)
    order = ops.argsort(-ops.take_along_axis(keys, places, axis=1), axis=-1)
    taken = _fill(ops.take_along_axis(lengths, order, axis=1), limit)
    # Back to tokens: the rank of each one's word in the order of trial.
    word = ops.maximum(ops.cumsum(ops.cast(starts, "int32"), axis=-1) - 1, 0)
    rank = ops.take_along_axis(ops.argsort(order, axis=-1), word, axis=1)
    chosen = ops.logical_and(candidates, ops.take_along_axis(taken, rank, axis=1))
    places = ops.sort(ops.where(chosen, rank * length + columns, length * length), axis=-1)[
        :, :slots
    ]
    used = places < length * length
    ranks = ops.where(used, ops.floor_divide(places, length), 0)
    positions = ops.where(used, ops.mod(places, length), 0)
    return positions, ranks, ops.sum(ops.cast(used, "int32"), axis=-1)


def _fill(lengths, limit):
    """Takes from the left what still fits: lengths int [B, n] (0: nothing), limit int [B] -> bool.

    A length that is passed over never fits again, so a turn of the loop takes all that fit up to
    the next one that does not: a few turns instead of n.
    """

    def fits(taken, left):
        free = ops.logical_and(lengths > 0, ops.logical_not(taken))
        return ops.logical_and(free, lengths <= left[:, None])

    def step(taken, left):
        fitting = fits(taken, left)
        sums = ops.cumsum(ops.where(fitting, lengths, 0), axis=-1)
        new = ops.logical_and(fitting, sums <= left[:, None])
        return ops.logical_or(taken, new), left - ops.sum(ops.where(new, lengths, 0), axis=-1)

    def unfinished(taken, left):
        return ops.any(fits(taken, left))

    return ops.while_loop(unfinished, step, (ops.zeros_like(lengths, dtype="bool"), limit))[0]


def scatter_update(sequence, updates, positions):
    """Writes `updates` into `sequence` at `positions`; position 0 is ignored.

    A position that is given several times takes the mean of its updates, rounded down, as in the
    original; where all its updates are the same, that is their value.

    Args:
        sequence: int [B, T].
        updates: int [B, M].
        positions: int [B, M].

    Returns:
        The updated sequence [B, T] and int [B, T] with 1 where it was written.
    """
    columns = ops.arange(ops.shape(sequence)[1], dtype="int32")
    hits = ops.logical_and(
        positions[:, :, None] == columns[None, None], positions[:, :, None] > 0
    )  # [B, M, T]
    counts = ops.sum(ops.cast(hits, "int32"), axis=1)
    sums = ops.sum(ops.where(hits, updates[:, :, None], 0), axis=1)
    written = ops.minimum(counts, 1)
    means = ops.floor_divide(sums, ops.maximum(counts, 1))
    return ops.where(counts > 0, means, sequence), written


def sample(logits, uniforms, block=128):
    """Draws from softmax(logits): the first token whose cumulative probability is above u.

    One uniform a draw, where Gumbel noise would take one a vocabulary entry. The cumulative sum
    runs over blocks of the vocabulary first, then within the block that was hit.

    Args:
        logits: [B, M, V].
        uniforms: float32 [B, M].

    Returns:
        int32 [B, M].
    """
    batch, slots, vocab_size = ops.shape(logits)
    logits = ops.cast(logits, "float32")
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    weights = ops.pad(weights, [[0, 0], [0, 0], [0, -vocab_size % block]])
    blocks = ops.reshape(weights, (batch, slots, -1, block))
    sums = ops.sum(blocks, axis=-1)  # [B, M, V/block]
    # Against the sum of the weights, not 1: they are not normalised.
    chosen, rest = _find(sums, uniforms * ops.sum(sums, axis=-1))
    within = ops.take_along_axis(blocks, chosen[:, :, None, None], axis=2)[:, :, 0]
    token = chosen * block + _find(within, rest)[0]
    return ops.minimum(token, vocab_size - 1)


def _find(weights, target):
    """The index of [B, M, n] at which the running sum of weights passes `target` [B, M].

    Also returns how far into that index's weight the target lies.
    """
    sums = ops.cumsum(weights, axis=-1)
    # Rounding may put the target past the last sum. Entries that complete the sum are not counted,
    # so the index then is that of the last weight above zero.
    passed = ops.logical_and(sums <= target[:, :, None], sums < sums[:, :, -1:])
    index = ops.sum(ops.cast(passed, "int32"), axis=-1)
    at = ops.take_along_axis(sums - weights, index[:, :, None], axis=-1)[:, :, 0]
    return index, target - at
