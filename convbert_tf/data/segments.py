"""Documents to pairs of segments, as the original's builder or as ELECTRA's paper cuts them."""

import itertools

SEGMENT_RULES = ("electra", "convbert")  # the rules of `segment_pairs`


def segment_pairs(sentences, max_seq_length, segment_rule, keep_long_lines, rng):
    """Cuts one document into pairs of segments, as the original's example builder does.

    Sentences are collected until there are `max_seq_length` tokens (in one of 20 examples, a random
    number from 5 up) and then dealt out by `segment_rule`: "electra" fills the first segment to
    about half the length, or in one of ten examples wholly, and the second with the rest;
    "convbert", the original's inverted condition, puts nearly everything into the first.
    What does not fit is lost in the original; with `keep_long_lines` it begins the next example.

    Args:
        sentences: the document's lines as token ranges (start, end), none of them empty.
        rng: `random.Random`.

    Yields:
        The two segments, each a list of token ranges; the second may be empty.
    """
    target, collected, size = max_seq_length, [], 0
    for sentence in itertools.chain(sentences, [None]):
        if sentence:
            collected.append(sentence)
            size += sentence[1] - sentence[0]
        while collected and (size >= target or not sentence):
            first, second = _deal(collected, target, segment_rule, rng)
            first, rest = _cut(first, max_seq_length - 2)
            room = max_seq_length - 3 - sum(end - start for start, end in first)
            second, second_rest = _cut(second, max(0, room))
            yield first, second
            collected = rest + second_rest if keep_long_lines else []
            size = sum(end - start for start, end in collected)
            target = rng.randint(5, max_seq_length) if rng.random() < 0.05 else max_seq_length


def _deal(sentences, target, segment_rule, rng):
    """Deals `sentences` out to two segments, in the order in which the original draws numbers."""
    first, second = [], []
    num_first = num_second = 0
    first_target = 100_000 if rng.random() < 0.1 else (target - 3) // 2
    # ELECTRA asks whether a segment is empty; the original, negated, whether it is not.
    empty = segment_rule == "electra"
    for start, end in sentences:
        num_tokens = end - start
        if (
            (num_first == 0) == empty
            or num_first + num_tokens < first_target
            or ((num_second == 0) == empty and num_first < first_target and rng.random() < 0.5)
        ):
            first.append((start, end))
            num_first += num_tokens
        else:
            second.append((start, end))
            num_second += num_tokens
    return first, second


def _cut(ranges, limit):
    """`ranges` cut after `limit` tokens: (what is before, the rest)."""
    for index, (start, end) in enumerate(ranges):
        if end - start > limit:
            before = [*ranges[:index], (start, start + limit)] if limit else ranges[:index]
            return before, [(start + limit, end), *ranges[index + 1 :]]
        limit -= end - start
    return ranges, []
