"""The builder of records on Apache Beam, for text that outgrows a machine (extra: `[beam]`).

The pipeline gives the shards that `corpus.build` gives in its own processes, byte by byte: a chunk
is a matter of where its documents begin in the text as a whole, which a first reading of the
sources' lengths tells. Sources are read in parallel, each by one worker, so that large text is best
given as many files. Every worker must reach the sources and the output folder under the same paths,
on a shared file system, and have this package.
"""

import itertools
import json
import os

from convbert_tf.console import UserError, say
from convbert_tf.data import corpus
from convbert_tf.files import write_bytes

_ACCOUNTS = "beam-accounts.json"  # in the output folder, from the pipeline to its launcher


def run_on(runner, options=()):
    """What `corpus.build` takes as `run`: builds the shards on a Beam runner.

    Args:
        runner: its name in Beam, say "DirectRunner", "FlinkRunner", "SparkRunner".
        options: Beam's own, a list of strings without dashes, say "direct_num_workers=4".

    Raises:
        UserError: Beam is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise UserError("runner needs Apache Beam: pip install -e '.[beam]'.") from error

    def run(sources, settings, output_dir, finished):
        from apache_beam.options.pipeline_options import PipelineOptions

        flags = [f"--runner={runner}", *(f"--{option}" for option in options)]
        say(f"building on Beam's {runner}")
        sources = [os.path.abspath(each) if isinstance(each, str) else each for each in sources]
        output_dir = os.path.abspath(output_dir)
        pipeline = apache_beam.Pipeline(options=PipelineOptions(flags))
        _build(pipeline, sources, settings, output_dir, finished)
        try:
            pipeline.run().wait_until_finish()
        except Exception as error:
            message = _user_message(error)
            if message:
                raise UserError(message) from error
            raise
        path = os.path.join(output_dir, _ACCOUNTS)
        with open(path, encoding="utf-8") as file:
            accounts = json.load(file)
        os.remove(path)
        return accounts

    return run


def _build(pipeline, sources, settings, output_dir, finished):
    """Adds to `pipeline` all from the sources to the accounts of the shards that are missing."""
    import apache_beam as beam

    chunk_bytes = settings["chunk_bytes"]
    sources = pipeline | "sources" >> beam.Create(list(enumerate(sources))) | beam.Reshuffle()
    starts = (
        sources
        | "lengths" >> beam.MapTuple(lambda number, source: (number, _length(source, chunk_bytes)))
        | "all lengths" >> beam.combiners.ToList()
        | "starts" >> beam.Map(_starts)
    )
    documents = sources | "read" >> beam.FlatMap(
        _documents, starts=beam.pvalue.AsSingleton(starts), chunk_bytes=chunk_bytes
    )
    sizes = (
        documents
        | "size" >> beam.MapTuple(lambda place, size, text: (place // chunk_bytes, size))
        | "sizes of chunks" >> beam.CombinePerKey(sum)
    )
    if settings["deduplicate"]:
        documents = (
            documents
            | "fingerprint"
            >> beam.Map(lambda document: (corpus.fingerprint(document[2]), document))
            | "first of equals" >> beam.CombinePerKey(min)  # by its place
            | beam.Values()
        )
    texts = documents | "chunk of a text" >> beam.MapTuple(
        lambda place, size, text: (place // chunk_bytes, (place, text))
    )
    (
        {"sizes": sizes, "texts": texts}
        | "chunks" >> beam.CoGroupByKey()
        | "missing" >> beam.Filter(lambda chunk: chunk[0] not in finished)
        | "shards" >> beam.ParDo(_shard_builder(settings, output_dir))
        | "all accounts" >> beam.combiners.ToList()
        | "accounts" >> beam.Map(_save, path=os.path.join(output_dir, _ACCOUNTS))
    )


def _length(source, chunk_bytes):
    return sum(size for _, size in corpus.documents(source, chunk_bytes))


def _starts(lengths):
    """Where the sources begin in the text as a whole: a list, from (number, length) pairs."""
    return list(itertools.accumulate((length for _, length in sorted(lengths)), initial=0))


def _documents(numbered, starts, chunk_bytes):
    """Yields the documents of a source: their place in the text as a whole, their size, text."""
    number, source = numbered
    place = starts[number]
    for text, size in corpus.documents(source, chunk_bytes):
        yield place, size, text
        place += size


def _shard_builder(settings, output_dir):
    import apache_beam as beam

    class BuildShard(beam.DoFn):
        def setup(self):
            self._build = corpus.ShardBuilder(settings, output_dir)

        def process(self, chunk):
            number, parts = chunk
            texts = [text for _, text in sorted(parts["texts"])]
            yield self._build(number, texts, sum(parts["sizes"]))

    return BuildShard()


def _save(accounts, path):
    write_bytes(path, json.dumps(accounts).encode("utf-8"))


def _user_message(error):
    """The message of a UserError that a worker raised, which a runner hands on as text, if any."""
    mark = f"{UserError.__name__}: "
    lines = [line.split(mark, 1)[1] for line in str(error).splitlines() if mark in line]
    return lines[-1] if lines else ""
