"""Text to pre-training records: files to documents to segment pairs to TFRecord shards.

The parent process reads the text and cuts it between documents into chunks; each chunk becomes one
shard, whole or not at all, in whichever process is free. A shard depends on its chunk, the settings
and (seed, chunk number) only: the files are the same byte by byte for any number of workers, and a
build that was broken off goes on where it stopped.
"""

import concurrent.futures
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal

import tensorflow as tf

from convbert_tf import records, tokenization
from convbert_tf.console import Progress, UserError
from convbert_tf.text_files import documents, find_files, is_packed

MANIFEST = "manifest.json"
_FORMAT = 1
LOG = "build.jsonl"  # the settings and the finished shards of a build, so that it can go on

_LINES_PER_CALL = 4096  # of the tokenizer: enough to hide the call, few enough for the caches


# --- documents to chunks ---


def _chunks(files, chunk_bytes, deduplicate):
    """Documents of `files` in lists of about `chunk_bytes`; yields (documents, bytes read)."""
    seen, texts, size, filled = set(), [], 0, 0
    for text, num_bytes in itertools.chain.from_iterable(
        documents(file, chunk_bytes) for file in files
    ):
        size += num_bytes
        if deduplicate:
            digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
        texts.append(text)
        filled += num_bytes
        if filled >= chunk_bytes:
            yield texts, size
            texts, size, filled = [], 0, 0
    if texts:
        yield texts, size


# --- documents to segment pairs ---


SEGMENT_RULES = ("electra", "convbert")


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


# --- segment pairs to a shard ---


class ShardBuilder:
    """Turns chunks of documents into shards in `output_dir`; one in each process."""

    def __init__(self, settings, output_dir):
        self._settings, self._output_dir = settings, output_dir
        self._tokenizer = tokenization.WordPieceTokenizer(
            os.path.join(output_dir, "vocab.txt"), lower_case=settings["lower_case"]
        )

    def __call__(self, number, texts, num_bytes):
        """Writes the shard of chunk `number`, if it gives a record; returns the shard's account."""
        account = {"chunk": number, "file": f"shard-{number:05d}.tfrecord", "tokens": 0}
        account |= {"documents": len(texts), "bytes": num_bytes}

        def encoded():
            for example in self._examples(texts, f"{self._settings['seed']}/{number}"):
                account["tokens"] += len(example["input_ids"])
                yield records.encode(example)

        path = os.path.join(self._output_dir, account["file"])
        try:
            account["records"] = records.write(path, encoded())
        except tf.errors.OpError as error:
            raise UserError(f"cannot write {path}: {error.message}") from error
        account["file_bytes"] = os.path.getsize(path)
        if not account["records"]:
            os.remove(path)
        return account

    def _examples(self, texts, seed):
        rng, options = (
            random.Random(seed),
            [
                self._settings[name]
                for name in ("max_seq_length", "segment_rule", "keep_long_lines")
            ],
        )
        documents = [text.split("\n") for text in texts]
        ids, edges = self._tokenize(list(itertools.chain.from_iterable(documents)))
        line = 0
        for document in documents:
            ends = edges[line : line + len(document) + 1]
            line += len(document)
            sentences = [(start, end) for start, end in itertools.pairwise(ends) if start < end]
            for first, second in segment_pairs(sentences, *options, rng):
                yield self._example(ids, first, second)

    def _tokenize(self, lines):
        """All tokens of `lines` in one list, and the edges between the lines in it."""
        ids, lengths = [], []
        for start in range(0, len(lines), _LINES_PER_CALL):
            tokens = self._tokenizer.tokenize(tf.constant(lines[start : start + _LINES_PER_CALL]))
            ids += tokens.flat_values.numpy().tolist()
            lengths += tokens.row_lengths().numpy().tolist()
        return ids, list(itertools.accumulate(lengths, initial=0))

    def _example(self, ids, first, second):
        cls, sep = [self._tokenizer.cls_id], [self._tokenizer.sep_id]
        first, second = (
            list(itertools.chain.from_iterable(ids[start:end] for start, end in ranges))
            for ranges in (first, second)
        )
        first, second = cls + first + sep, second + sep if second else second
        return {
            "input_ids": first + second,
            "segment_ids": [0] * len(first) + [1] * len(second),
        }


# --- the build ---


def build(
    inputs,
    output_dir,
    vocab_file,
    *,
    max_seq_length=128,
    segment_rule="electra",
    keep_long_lines=None,
    lower_case=True,
    deduplicate=False,
    seed=0,
    num_workers=None,
    chunk_bytes=8_000_000,
    overwrite=False,
):
    """Builds pre-training records of the text in `inputs`; resumes a build that was broken off.

    Leaves in `output_dir` the shards, vocab.txt and, last, manifest.json. A script that calls this
    with several workers must be safe to import (`if __name__ == "__main__":`).

    Args:
        inputs: see `find_files`; the files' format: see `documents`.
        max_seq_length: of a record with its special tokens, at least 8.
        segment_rule: "electra" or "convbert", see `segment_pairs`.
        keep_long_lines: whether what does not fit into an example begins the next one. The original
            drops it: of Wikipedia, with a paragraph a line, more than a quarter. Default: True for
            "electra", False for "convbert".
        deduplicate: leave out documents equal to an earlier one.
        num_workers: processes; default: one for each core this process may use.
        chunk_bytes: text for one shard, about; several times this is held for each worker.
        overwrite: delete what a build with other settings left in `output_dir`.

    Returns:
        The manifest: `format`, the settings, `vocab_size`, `num_records`, `num_tokens` (with the
        special ones), `num_documents`, `num_bytes` (of the unpacked input) and `shards`, a list of
        `chunk`, `file`, `records`, `tokens`, `documents`, `bytes` (of input), `file_bytes`.

    Raises:
        UserError: no text, text or vocabulary that cannot be read, an impossible option, or
            records of other settings in `output_dir`.
    """
    if segment_rule not in SEGMENT_RULES:
        raise UserError(f"segment_rule is {segment_rule!r}: choose {' or '.join(SEGMENT_RULES)}.")
    if max_seq_length < 8:
        raise UserError(f"max_seq_length is {max_seq_length}: a pair of segments needs 8 or more.")
    num_workers = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
    if num_workers < 1 or chunk_bytes < 1:
        raise UserError(f"num_workers={num_workers}, chunk_bytes={chunk_bytes}: 1 is the least.")
    files = find_files(inputs)
    vocab = "".join(f"{piece}\n" for piece in tokenization.load_vocab(vocab_file)).encode("utf-8")
    names_and_sizes = [(os.path.basename(file), os.path.getsize(file)) for file in files]
    settings = {
        "max_seq_length": max_seq_length,
        "segment_rule": segment_rule,
        "keep_long_lines": segment_rule == "electra"
        if keep_long_lines is None
        else keep_long_lines,
        "lower_case": lower_case,
        "deduplicate": deduplicate,
        "seed": seed,
        "chunk_bytes": chunk_bytes,
        "vocab_sha256": hashlib.sha256(vocab).hexdigest(),
        "input_sha256": hashlib.sha256(json.dumps(names_and_sizes).encode("utf-8")).hexdigest(),
    }
    os.makedirs(output_dir, exist_ok=True)
    finished = _earlier_shards(output_dir, settings, overwrite)
    manifest_file = os.path.join(output_dir, MANIFEST)
    if os.path.exists(manifest_file):
        with open(manifest_file, encoding="utf-8") as file:
            manifest = json.load(file)
        if all(shard["chunk"] in finished for shard in manifest["shards"]):
            return manifest
    _write(os.path.join(output_dir, "vocab.txt"), vocab)
    _build_missing(files, output_dir, settings, finished, num_workers)
    manifest = _manifest(settings, vocab.count(b"\n"), finished)
    _write(manifest_file, json.dumps(manifest, indent=1).encode("utf-8"))
    return manifest


def _write(path, content):
    partial = f"{path}.partial-{os.getpid()}"
    with open(partial, "wb") as file:
        file.write(content)
    os.replace(partial, path)


def _earlier_shards(output_dir, settings, overwrite):
    """The accounts (chunk number -> account) of the shards in `output_dir` that can be kept.

    They are read from the build's log: a line of settings, then a line for each finished shard.
    Without overwrite, records of other settings raise a UserError.
    """
    log = os.path.join(output_dir, LOG)
    shards = glob.glob(os.path.join(glob.escape(output_dir), "shard-*.tfrecord*"))
    lines = []
    if os.path.exists(log):
        with open(log, encoding="utf-8") as file:  # the last line may have been broken off
            lines = [json.loads(line) for line in file if line.endswith("\n")]
    earlier, accounts = (lines[0], lines[1:]) if lines else ({}, [])
    differing = [name for name, value in settings.items() if earlier.get(name) != value]
    if differing and shards and not overwrite:
        name = differing[0]
        what = {"input_sha256": "other input", "vocab_sha256": "another vocabulary"}.get(
            name, f"{name}={earlier.get(name, 'unknown')}, not {settings[name]}"
        )
        raise UserError(
            f"{output_dir} holds records built with {what}: choose another output directory, or "
            "overwrite to build them again."
        )
    sizes = {os.path.basename(path): os.path.getsize(path) for path in shards}
    kept = {
        account["chunk"]: account
        for account in accounts
        if not differing and sizes.get(account["file"], 0) == account["file_bytes"]
    }
    for path in [*shards, os.path.join(output_dir, MANIFEST)]:
        if (differing or ".partial-" in path) and os.path.exists(path):
            os.remove(path)
    lines = [json.dumps(line) + "\n" for line in (settings, *kept.values())]
    _write(log, "".join(lines).encode("utf-8"))
    return kept


def _build_missing(files, output_dir, settings, finished, num_workers):
    """Builds the shards of those chunks of `files` that are not in `finished`; adds them to it."""
    packed = any(map(is_packed, files))
    total = None if packed else sum(map(os.path.getsize, files))
    done = sum(account["bytes"] for account in finished.values())
    progress = Progress("records", total, unit="B", start=done)
    chunks = enumerate(_chunks(files, settings["chunk_bytes"], settings["deduplicate"]))
    jobs = ((number, *chunk) for number, chunk in chunks if number not in finished)
    with open(os.path.join(output_dir, LOG), "a", encoding="utf-8") as log:
        for account in _run(jobs, num_workers, settings, output_dir):
            finished[account["chunk"]] = account
            print(json.dumps(account), file=log, flush=True)
            done += account["bytes"]
            progress.update(done, note=f"{len(finished)} shards")
    progress.close(note=f"{len(finished)} shards")


def _run(jobs, num_workers, settings, output_dir):
    """Yields the accounts of `jobs` as they get ready; few jobs are held in memory at once."""
    if num_workers == 1:
        yield from itertools.starmap(ShardBuilder(settings, output_dir), jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, context, _start_worker, (settings, output_dir)
    )
    try:
        running = set()
        for job in jobs:
            running.add(pool.submit(_build_shard, *job))
            if len(running) > num_workers + 1:
                ready, running = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                yield from (future.result() for future in ready)
        yield from (future.result() for future in concurrent.futures.as_completed(running))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory: run again with fewer "
            "workers, finished shards are kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(settings, output_dir):
    global _build_shard_here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")
    _build_shard_here = ShardBuilder(settings, output_dir)


def _build_shard(*job):
    return _build_shard_here(*job)


def _manifest(settings, vocab_size, finished):
    shards = [account for _, account in sorted(finished.items()) if account["records"]]
    if not shards:
        raise UserError("the input holds no text that makes a record.")
    sums = {
        f"num_{name}": sum(account[name] for account in finished.values())
        for name in ("records", "tokens", "documents", "bytes")
    }
    return {"format": _FORMAT, **settings, "vocab_size": vocab_size, **sums, "shards": shards}
