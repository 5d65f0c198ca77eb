r"""Builds pre-training records of plain text, on all cores; run again to go on after a break.

    python tools/build_pretraining_data.py --input='data/*.txt' --vocab_file=vocab.txt \
        --output_dir=records

Input: .txt with a paragraph or a sentence a line and a blank line between documents, or .jsonl (or
.json of such lines) with a document a line in the field "text"; all also as .gz or .xz; or, with
--tfds=name:split, text sets of TensorFlow Datasets. Writes shard-*.tfrecord, vocab.txt and, when
all is there, manifest.json. With --runner, Apache Beam builds the same files, on a cluster if need
be.
"""

from absl import flags

from convbert_tf import console

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("input", [], "File, glob or directory of text; may be given again.")
flags.DEFINE_multi_string(
    "tfds",
    [],
    "Text set of TensorFlow Datasets, as name:split or name:split:field, where name may be a "
    "directory; may be given again.",
)
flags.DEFINE_string("output_dir", None, "Folder for the records.", required=True)
flags.DEFINE_string("vocab_file", None, "Vocabulary, one piece a line.", required=True)
flags.DEFINE_integer("max_seq_length", 128, "Longest record, in tokens with the special ones.")
flags.DEFINE_enum(
    "segment_rule",
    "electra",
    ["electra", "convbert"],
    "How sentences are dealt out: two segments, as ELECTRA's paper says, or mostly one, as the "
    "original ConvBERT code does.",
)
flags.DEFINE_bool(
    "keep_long_lines",
    None,
    "Whether text that does not fit into an example begins the next one; the original drops it. "
    "Default: true for electra, false for convbert.",
)
flags.DEFINE_bool("lower_case", True, "For uncased vocabularies: lower-case and strip accents.")
flags.DEFINE_bool("strip_accents", None, "Default: as lower_case; no: lower-case alone.")
flags.DEFINE_bool("deduplicate", False, "Leave out documents equal to an earlier one.")
flags.DEFINE_integer("seed", 0, "Seed of the segments' random lengths.")
flags.DEFINE_integer(
    "num_workers",
    None,
    "Processes; default: one a core, if there are 30 MB for each.",
    lower_bound=1,
)
flags.DEFINE_string(
    "runner",
    None,
    "A runner of Apache Beam, say DirectRunner or FlinkRunner, to build with instead of processes "
    "here; its workers must reach input and output under the same paths.",
)
flags.DEFINE_multi_string(
    "beam_option", [], "Option of Beam's, say direct_num_workers=4; may be given again."
)
flags.DEFINE_bool("overwrite", False, "Delete records built with other settings in output_dir.")


def main(_):
    if not FLAGS.input and not FLAGS.tfds:
        raise console.UserError("set --input or --tfds.")
    if FLAGS.beam_option and not FLAGS.runner:
        raise console.UserError("--beam_option is for --runner, which is not set.")

    # TensorFlow comes with these: not for --help and bad flags.
    console.load_tensorflow()
    from convbert_tf.data import corpus, corpus_beam

    run = corpus_beam.run_on(FLAGS.runner, FLAGS.beam_option) if FLAGS.runner else None
    manifest = corpus.build(
        FLAGS.input,
        FLAGS.output_dir,
        FLAGS.vocab_file,
        tfds=FLAGS.tfds,
        max_seq_length=FLAGS.max_seq_length,
        segment_rule=FLAGS.segment_rule,
        keep_long_lines=FLAGS.keep_long_lines,
        lower_case=FLAGS.lower_case,
        strip_accents=FLAGS.strip_accents,
        deduplicate=FLAGS.deduplicate,
        seed=FLAGS.seed,
        num_workers=FLAGS.num_workers,
        overwrite=FLAGS.overwrite,
        run=run,
    )
    share = 100 * manifest["num_unknown"] / manifest["num_tokens"]
    console.say(
        f"{FLAGS.output_dir}: {console.counted(manifest['num_records'], 'record')}, "
        f"{console.counted(manifest['num_tokens'], 'token')}, {share:.2f}% of them [UNK], of "
        f"{console.counted(manifest['num_documents'], 'document')} in "
        f"{console.counted(len(manifest['shards']), 'shard')}."
    )


if __name__ == "__main__":
    console.run(main)
