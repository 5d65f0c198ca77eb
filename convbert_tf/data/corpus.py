"""Text to pre-training records: files to documents to segment pairs to TFRecord shards.

The parent process reads the text and cuts it between documents into chunks; each chunk becomes one
shard, whole or not at all, in whichever process is free. A shard depends on its chunk, the settings
and (seed, chunk number) only, and a chunk on where its documents begin: the files are the same byte
by byte for any number of workers, a build that was broken off goes on where it stopped, and
corpus_beam.py makes the same files on a cluster.
"""

import collections
import concurrent.futures
import functools
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import tensorflow as tf

from convbert_tf.console import Progress, UserError, call, counted, reason, usable_cores
from convbert_tf.data import records, text_files, tfds_text
from convbert_tf.data.segments import SEGMENT_RULES, segment_pairs
from convbert_tf.data.shards import FORMAT, LOG, MANIFEST, undone_without_shards
from convbert_tf.files import sha256, write_bytes
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.text.vocabulary import file_content, strips_accents
from convbert_tf.text.vocabulary_training import warn_unknown

_LINES_PER_CALL = 4096  # of the tokenizer: enough to hide the call, few enough for the caches
_MAX_EXAMPLES = 8  # of words that are [UNK]
_BYTES_PER_WORKER = 30e6  # of text; a worker takes as long to start as to read them


# --- documents to chunks ---


def documents(source, chunk_bytes):
    """Documents of a source (see `build`) and the bytes of text that were read for each."""
    if isinstance(source, tfds_text.Split):
        return tfds_text.documents(source)
    return text_files.documents(source, chunk_bytes)


def fingerprint(text):
    """16 bytes by which `deduplicate` knows a document, whatever its line ends are."""
    content = (text + "\n").replace("\r\n", "\n").encode("utf-8")
    return hashlib.blake2b(content, digest_size=16).digest()


def _chunks(sources, chunk_bytes, deduplicate):
    """Cuts the documents of `sources` into chunks: yields (number, documents, bytes read).

    A document belongs to the chunk in which it begins: its number is that of the bytes before it,
    those of duplicates too, divided by `chunk_bytes`. So where a document goes depends on sizes
    alone. A number is left out where a long document covers the chunk.
    """
    seen, number, texts, size, place = set(), 0, [], 0, 0
    for text, num_bytes in itertools.chain.from_iterable(
        documents(source, chunk_bytes) for source in sources
    ):
        if place // chunk_bytes > number:
            yield number, texts, size
            number, texts, size = place // chunk_bytes, [], 0
        place, size = place + num_bytes, size + num_bytes
        if deduplicate:
            key = fingerprint(text)
            if key in seen:
                continue
            seen.add(key)
        texts.append(text)
    if size:
        yield number, texts, size


# --- a chunk to a shard ---


class ShardBuilder:
    """Turns chunks of documents into shards in `output_dir`; one in each process."""

    def __init__(self, settings, output_dir):
        self._settings, self._output_dir = settings, output_dir
        self._tokenizer = WordPieceTokenizer(
            os.path.join(output_dir, "vocab.txt"),
            settings["lower_case"],
            settings["strip_accents"],
        )
        special = (self._tokenizer.cls_id, self._tokenizer.sep_id)
        self._cls, self._sep = (records.pack([token])[0] for token in special)

    def __call__(self, number, texts, num_bytes):
        """Writes the shard of chunk `number`, if it gives a record; returns the shard's account."""
        account = {"chunk": number, "file": f"shard-{number:05d}.tfrecord", "tokens": 0}
        account |= {"unknown": 0, "documents": len(texts), "bytes": num_bytes}

        def encoded():
            for example, unknown in self._examples(texts, account):
                account["tokens"] += len(example["segment_ids"])  # a byte each
                account["unknown"] += unknown
                yield records.encode_packed(example)

        path = os.path.join(self._output_dir, account["file"])
        try:
            account["records"] = records.write(path, encoded())
        except tf.errors.OpError as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error
        account["file_bytes"] = os.path.getsize(path)
        if not account["records"]:
            os.remove(path)
        return account

    def _examples(self, texts, account):
        names = ("max_seq_length", "segment_rule", "keep_long_lines")
        options = [self._settings[name] for name in names]
        rng = random.Random(f"{self._settings['seed']}/{account['chunk']}")
        documents = [text.split("\n") for text in texts]
        lines = list(itertools.chain.from_iterable(documents))
        ids, edges = self._tokenize(lines)
        packed, places = records.pack(ids)
        is_unknown = ids == self._tokenizer.unk_id
        unknown = np.append(0, np.cumsum(is_unknown)).data  # before each token
        if is_unknown.any():
            account["unknown_words"] = self._unknown_words(lines, edges, is_unknown)
        line = 0
        for document in documents:
            ends = edges[line : line + len(document) + 1]
            line += len(document)
            sentences = [(start, end) for start, end in itertools.pairwise(ends) if start < end]
            for first, second in segment_pairs(sentences, *options, rng):
                number = sum(unknown[end] - unknown[start] for start, end in (*first, *second))
                yield self._example(packed, places, first, second), number

    def _tokenize(self, lines):
        """All tokens of `lines` in one array, and the edges between the lines in it."""
        ids, lengths = [np.zeros(0, np.int32)], []
        for start in range(0, len(lines), _LINES_PER_CALL):
            tokens = self._tokenizer.tokenize(tf.constant(lines[start : start + _LINES_PER_CALL]))
            ids.append(tokens.flat_values.numpy())
            lengths += tokens.row_lengths().numpy().tolist()
        return np.concatenate(ids), list(itertools.accumulate(lengths, initial=0))

    def _unknown_words(self, lines, edges, is_unknown):
        """Some words of `lines` that are [UNK], as examples: the first of the first such lines."""
        places = np.flatnonzero(is_unknown)[: 10 * _MAX_EXAMPLES]
        chosen = dict.fromkeys(np.searchsorted(edges, places, side="right") - 1)
        chosen = [lines[number].encode("utf-8") for number in chosen]
        found, tokens = {}, self._tokenizer.tokenize_with_offsets(chosen)
        for line, ids, starts, ends in zip(chosen, *(x.to_list() for x in tokens), strict=True):
            for token, start, end in zip(ids, starts, ends, strict=True):
                if token == self._tokenizer.unk_id:
                    found[line[start:end].decode("utf-8", "replace")] = None
        return list(found)[:_MAX_EXAMPLES]

    def _example(self, packed, places, first, second):
        """A record of two segments (token ranges), as `records.encode_packed` takes it."""
        input_ids, lengths = [self._cls], [1, 0]
        for segment, ranges in enumerate((first, second)):
            if ranges or segment == 0:
                input_ids += [packed[places[start] : places[end]] for start, end in ranges]
                input_ids.append(self._sep)
                lengths[segment] += 1 + sum(end - start for start, end in ranges)
        segment_ids = bytes(lengths[0]) + b"\1" * lengths[1]
        return {"input_ids": b"".join(input_ids), "segment_ids": segment_ids}


# --- the build ---


def build(
    inputs,
    output_dir,
    vocab_file,
    *,
    tfds=(),
    max_seq_length=128,
    segment_rule="electra",
    keep_long_lines=None,
    lower_case=True,
    strip_accents=None,
    deduplicate=False,
    seed=0,
    num_workers=None,
    chunk_bytes=8_000_000,
    overwrite=False,
    run=None,
):
    """Builds pre-training records of the text in `inputs`; resumes a build that was broken off.

    Leaves in `output_dir` the shards, vocab.txt and, last, manifest.json. A script that calls this
    with several workers must be safe to import (`if __name__ == "__main__":`).

    Args:
        inputs: see `text_files.find_files`; the files' format: see `text_files.documents`. May be
            empty where `tfds` is given.
        tfds: TensorFlow Datasets to read after `inputs`, see `tfds_text.find_splits`.
        max_seq_length: of a record with its special tokens, at least 8.
        segment_rule: "electra" or "convbert", see `segment_pairs`.
        keep_long_lines: whether what does not fit into an example begins the next one. The original
            drops it: of Wikipedia, with a paragraph a line, more than a quarter. Default: True for
            "electra", False for "convbert".
        lower_case, strip_accents: of texts, see WordPieceTokenizer.
        deduplicate: leave out documents equal to an earlier one. About 100 bytes of memory for
            each document, none of its text.
        num_workers: processes; default: one for each core this process may use, but no more than
            one for each 30 MB, as one takes as long to start as to read that.
        chunk_bytes: text for one shard, about; several times this is held for each worker.
        overwrite: delete what a build with other settings left in `output_dir`.
        run: what builds the shards that are missing, in place of processes here: a function of the
            sources (paths and `tfds_text.Split`s), the settings, output_dir and the numbers of the
            chunks that are there, to the shards' accounts; `corpus_beam.run_on` makes one.

    Returns:
        The manifest: `format`, the settings, `vocab_size`, `num_records`, `num_tokens` (with the
        special ones), `num_unknown` ([UNK] among them), `num_documents`, `num_bytes` (of the
        unpacked input), `unknown_words` (examples) and `shards`, a list of `chunk`, `file`,
        `records`, `tokens`, `unknown`, `documents`, `bytes` (of input), `file_bytes`.

    Raises:
        UserError: no text, text or vocabulary that cannot be read, an impossible option, or
            records of other settings or of other text in `output_dir`.
    """
    if segment_rule not in SEGMENT_RULES:
        raise UserError(f"segment_rule is {segment_rule!r}: choose {' or '.join(SEGMENT_RULES)}.")
    if max_seq_length < 8:
        raise UserError(f"max_seq_length is {max_seq_length}: a pair of segments needs 8 or more.")
    files = text_files.find_files(inputs) if inputs or not tfds else []
    own = os.path.join(os.path.realpath(output_dir), "")
    inside = [file for file in files if os.path.realpath(file).startswith(own)]
    if inside:
        raise UserError(f"{inside[0]}, of the input, lies in output_dir: name another folder.")
    for file in files:
        text_files.check(file)
    num_workers = _useful_workers(files, tfds) if num_workers is None else num_workers
    if num_workers < 1 or chunk_bytes < 1:
        raise UserError(f"num_workers={num_workers}, chunk_bytes={chunk_bytes}: 1 is the least.")
    splits = tfds_text.find_splits(tfds)
    vocab = file_content(vocab_file)
    settings = {
        "max_seq_length": max_seq_length,
        "segment_rule": segment_rule,
        "keep_long_lines": segment_rule == "electra"
        if keep_long_lines is None
        else keep_long_lines,
        "lower_case": lower_case,
        "strip_accents": strips_accents(lower_case, strip_accents),
        "deduplicate": deduplicate,
        "seed": seed,
        "chunk_bytes": chunk_bytes,
        "vocab_sha256": hashlib.sha256(vocab).hexdigest(),
        "inputs": _identities(files) + [tfds_text.identity(split) for split in splits],
    }
    run = run or functools.partial(_run_here, num_workers=num_workers)
    manifest_file = os.path.join(output_dir, MANIFEST)
    with undone_without_shards(output_dir):
        finished = _earlier_shards(output_dir, settings, overwrite)
        if os.path.exists(manifest_file):
            with open(manifest_file, encoding="utf-8") as file:
                manifest = json.load(file)
            if all(shard["chunk"] in finished for shard in manifest["shards"]):
                return _warned(manifest)
        write_bytes(os.path.join(output_dir, "vocab.txt"), vocab)
        _build_missing([*files, *splits], output_dir, settings, finished, run)
        manifest = _manifest(settings, vocab.count(b"\n"), finished)
        write_bytes(manifest_file, json.dumps(manifest, indent=1).encode("utf-8"))
    return _warned(manifest)


def _identities(files):
    """What tells each input file from others, wherever it lies: name, size, hash of its content."""

    def identity(path):
        return [os.path.basename(path), os.path.getsize(path), sha256(path)]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(identity, files))


def _warned(manifest):
    """`manifest`; a line on the terminal says so where too much of the text is [UNK]."""
    warn_unknown(
        manifest["num_unknown"],
        manifest["num_tokens"],
        collections.Counter(manifest["unknown_words"]),
        "is the vocabulary for this language and casing?",
    )
    return manifest


def _useful_workers(files, tfds):
    cores = usable_cores()
    size = sum(os.path.getsize(file) for file in files)
    return cores if tfds else max(1, min(cores, int(size / _BYTES_PER_WORKER)))


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
    earlier.setdefault("strip_accents", earlier.get("lower_case"))  # not in logs of old builds
    differing = [name for name, value in settings.items() if earlier.get(name) != value]
    if differing and shards and not overwrite:
        name, hint = differing[0], ""
        what = f"{name}={earlier.get(name, 'unknown')}, not {settings.get(name)}"
        if name == "inputs":
            what = "other input"
            hint = f" ({_difference(earlier.get(name, []), settings[name])})"
        elif name == "vocab_sha256":
            what = "another vocabulary"
        raise UserError(
            f"{output_dir} holds records built with {what}: choose another output directory, or "
            f"overwrite to build them again{hint}."
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
    write_bytes(log, "".join(lines).encode("utf-8"))
    return kept


def _difference(earlier, inputs):
    """Which of the `inputs` are others than at an `earlier` build; see _identities."""
    earlier, inputs = ({each[0]: each for each in them} for them in (earlier, inputs))
    changed = {name for name in inputs.keys() & earlier.keys() if inputs[name] != earlier[name]}
    changes = {
        "was edited": changed,
        "is new": inputs.keys() - earlier.keys(),
        "is gone": earlier.keys() - inputs.keys(),
    }
    changes = [f"{min(names)} {how}" for how, names in changes.items() if names]
    return changes[0] if changes else "files of one name were edited"


def _build_missing(sources, output_dir, settings, finished, run):
    """Has the shards of those chunks built that are not in `finished`; adds them to it."""
    sizes = [text_files.size(source) for source in sources if isinstance(source, str)]
    known = len(sizes) == len(sources) and None not in sizes
    done = sum(account["bytes"] for account in finished.values())
    progress = Progress("records", sum(sizes) if known else None, unit="B", start=done)
    with open(os.path.join(output_dir, LOG), "a", encoding="utf-8") as log:
        for account in run(sources, settings, output_dir, frozenset(finished)):
            finished[account["chunk"]] = account
            print(json.dumps(account), file=log, flush=True)
            done += account["bytes"]
            progress.update(done, note=counted(len(finished), "shard"))
    progress.close(note=counted(len(finished), "shard"))


def _run_here(sources, settings, output_dir, finished, num_workers):
    """Yields the accounts of missing shards as they get ready; holds few chunks at once."""
    chunks = _chunks(sources, settings["chunk_bytes"], settings["deduplicate"])
    jobs = (chunk for chunk in chunks if chunk[0] not in finished)
    if num_workers == 1:
        yield from itertools.starmap(ShardBuilder(settings, output_dir), jobs)
        return
    context = multiprocessing.get_context("spawn")
    started = (__name__, "_start_worker", settings, output_dir)
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, call, started)
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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")
    _build_shard_here = ShardBuilder(settings, output_dir)


def _end_with_parent():
    """A parent that was killed cannot stop its workers, and they would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _build_shard(*job):
    return _build_shard_here(*job)


def _manifest(settings, vocab_size, finished):
    shards = [account for _, account in sorted(finished.items()) if account["records"]]
    if not shards:
        raise UserError("the input holds no text that makes a record.")
    sums = {
        f"num_{name}": sum(account[name] for account in finished.values())
        for name in ("records", "tokens", "unknown", "documents", "bytes")
    }
    # The words of most shards, as examples; of each its own are in the log.
    words = collections.Counter(word for shard in shards for word in shard.get("unknown_words", ()))
    words = [word for word, _ in words.most_common(_MAX_EXAMPLES)]
    shards = [{k: v for k, v in shard.items() if k != "unknown_words"} for shard in shards]
    manifest = {"format": FORMAT, **settings, "vocab_size": vocab_size, **sums}
    return manifest | {"unknown_words": words, "shards": shards}
