"""Fine-tuning on GLUE and SQuAD: from a preset and a task's files to its official metric.

`run` does it all; what differs between the two kinds of task stands in `GlueData` and `SquadData`.
"""

import glob
import itertools
import os

import numpy as np
import orbit
import tensorflow as tf

from convbert_tf.config import CONFIG_FILE, check_length
from convbert_tf.console import UserError, say
from convbert_tf.data import input_pipeline, records
from convbert_tf.files import write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.tasks import glue, squad, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.training import checkpoints, identity, loop, scores, strategies
from convbert_tf.weights import formats
from convbert_tf.weights.presets import check_vocabulary

SQUAD_TASKS = {"squad_v1": False, "squad_v2": True}  # name -> has unanswerable questions


class FinetuningTask:
    """A model with `example_losses`, as trainer.Trainer takes it.

    The loss is the sum over the global batch, as in the original; with the gradient clipped and
    Adam behind it, that differs from the mean in how often it is clipped.
    """

    count_shapes = {"loss_sum": (), "examples": ()}
    eval_dataset = None

    def __init__(self, model, train_dataset, **loss_options):
        self.model, self.train_dataset = model, train_dataset
        self._loss_options = loss_options

    def prepare(self, batch):
        return batch, {"task": None}

    def losses(self, batch, training):
        outputs = self.model(batch, training=training)
        total = tf.reduce_sum(self.model.example_losses(outputs, batch, **self._loss_options))
        examples = tf.cast(tf.shape(batch["input_ids"])[0], tf.float32)
        return {"task": (1.0, total)}, {"loss_sum": total, "examples": examples}

    def metrics(self, counts):
        return {"loss": float(counts["loss_sum"] / max(counts["examples"], 1))}


class GlueData:
    """A GLUE task's files: records to train on, and scoring of the dev set.

    Args:
        config: TaskConfig; `data_dir` holds train.tsv and dev.tsv.
        tokenizer: WordPieceTokenizer.
        work_dir: for the records.
    """

    def __init__(self, config, tokenizer, work_dir):
        self.config, self.tokenizer, self.work_dir = config, tokenizer, work_dir
        self.task = glue.find_task(config.name)
        self.schema, self.metric_names = self.task.schema, self.task.metrics

    def files(self):
        """Paths of the files to train on and to score."""
        return [glue.find_file(self.task, self.config.data_dir, s) for s in ("train", "dev")]

    def check(self, batch_size):
        """Refuses files that cannot be read, or that do not fill a batch to train on."""
        train, _ = (
            glue.read_examples(self.task, self.config.data_dir, s) for s in ("train", "dev")
        )
        doubled = self.task.unordered and self.config.double_unordered
        num_records = len(train) * (2 if doubled else 1)
        input_pipeline.full_batches(num_records, batch_size, self.files()[0])

    def make_model(self, model):
        """A classifier on the encoder of `model`; with its head if that has this task's labels."""
        labels, dropout = self.task.labels, self.config.classifier_dropout
        options = {"num_classes": len(labels) or 1, "labels": labels or None, "dropout": dropout}
        return TextClassifier.start_from(model, self.config.init_from, **options)

    def serving(self):
        """What serving.export needs to answer as this task is scored."""
        settings = {"max_seq_length": self.config.max_seq_length, "pair": bool(self.task.text_b)}
        return settings | ({"max_score": self.task.max_score} if self.task.is_regression else {})

    def write_training_records(self, path):
        return glue.write_records(
            path,
            self.task,
            glue.read_examples(self.task, self.config.data_dir, "train"),
            self.tokenizer,
            self.config.max_seq_length,
            double_unordered=self.config.double_unordered,
        )

    def read_evaluation(self, split="dev"):
        """Records of `split` to predict, in memory."""
        self.examples = glue.read_examples(self.task, self.config.data_dir, split)
        path = os.path.join(self.work_dir, f"{split}.tfrecord")
        glue.write_records(
            path, self.task, self.examples, self.tokenizer, self.config.max_seq_length
        )
        return records.read(path)

    def baseline(self):
        """Metrics of always giving the training set's most frequent answer."""
        train = glue.read_examples(self.task, self.config.data_dir, "train")
        return glue.majority_baseline(self.task, train, self.examples)

    def classes(self, logits):
        """Class ids int [n], or scores float [n], of logits [n, C]."""
        return logits[:, 0] if self.task.is_regression else np.argmax(logits, axis=-1)

    def score(self, outputs, output_dir):
        """Metrics of the outputs for the records of `read_evaluation`; predictions to a file."""
        predictions = self.classes(outputs["logits"])
        os.makedirs(output_dir, exist_ok=True)
        glue.write_submission(
            os.path.join(output_dir, f"{self.task.folder or self.task.name}.tsv"),
            self.task,
            predictions,
        )
        return glue.metrics(self.task, predictions, [example.label for example in self.examples])


class SquadData:
    """SQuAD's files: records to train on, and official scoring of the dev set.

    Args: as GlueData; `data_dir` holds train.json and dev.json.
    """

    schema = records.SQUAD

    def __init__(self, config, tokenizer, work_dir):
        self.config, self.tokenizer, self.work_dir = config, tokenizer, work_dir
        self.version2 = SQUAD_TASKS[config.name]
        self.metric_names = squad_decoding.METRICS_V2 if self.version2 else squad_decoding.METRICS

    def files(self):
        """Paths of the files to train on and to score."""
        found = [os.path.join(self.config.data_dir, f"{split}.json") for split in ("train", "dev")]
        for path in found:
            if not os.path.isfile(path):
                raise UserError(f"{path} is not there; SQuAD's JSON is needed.")
        return found

    def check(self, batch_size):
        """Refuses files that cannot be read; how many records they make is not known yet."""
        for path in self.files():
            squad.read_examples(path, False, self.version2)

    def make_model(self, model):
        """A question answerer on the encoder of `model`; with its head if it is of this kind."""
        options = {"answerable": self.version2, "beam_size": self.config.beam_size}
        options |= {} if self.config.joint_prediction else {"joint": False}
        return QuestionAnswerer.start_from(model, self.config.init_from, **options)

    def serving(self):
        names = ("max_seq_length", "doc_stride", "max_query_length", "max_answer_length")
        return {name: getattr(self.config, name) for name in names}

    def _windows(self, split):
        training = split == "train"
        path = os.path.join(self.config.data_dir, f"{split}.json")
        examples = squad.read_examples(path, training, self.version2)
        windows = squad.make_windows(
            examples,
            self.tokenizer,
            self.config.max_seq_length,
            self.config.doc_stride,
            self.config.max_query_length,
            training,
        )
        return path, windows

    def write_training_records(self, path):
        return squad.write_records(path, self._windows("train")[1])

    def baseline(self):
        """Official metrics of random spans of the usual length."""
        examples = squad.read_examples(self.path, False, self.version2)
        return squad_decoding.evaluate(self.path, squad_decoding.span_baseline(examples, seed=0))

    def read_evaluation(self, split="dev"):
        """Records of the windows of `split`, in memory."""
        self.path, self.windows = self._windows(split)
        records_file = os.path.join(self.work_dir, f"{split}.tfrecord")
        squad.write_records(records_file, self.windows)
        return records.read(records_file)

    def score(self, outputs, output_dir):
        """Official metrics, in percent, of the outputs for `read_evaluation`'s records."""
        predictions, nbest, null_odds = squad_decoding.decode(
            self.windows,
            outputs,
            self.config.max_answer_length,
            self.config.n_best_size,
            self.version2,
        )
        squad_decoding.write_predictions(output_dir, predictions, nbest, null_odds)
        return squad_decoding.evaluate(self.path, predictions, null_odds or None)


def make_data(config, tokenizer, work_dir):
    """GlueData or SquadData, by the task's name."""
    kind = SquadData if config.name in SQUAD_TASKS else GlueData
    return kind(config, tokenizer, work_dir)


class Predictor:
    """Computes outputs of a model for all records of a set; traced at its first use.

    Args:
        model: TextClassifier or QuestionAnswerer, made in the scope of `strategy`.
        strategy: tf.distribute.Strategy.
    """

    def __init__(self, model, strategy):
        self.model, self.strategy = model, strategy
        self._step = None

    def __call__(self, serialized, schema, batch_size, max_seq_length):
        """Outputs for every record, in the records' order.

        Args:
            serialized: list of N records whose `example_id`s are 0 .. N-1.
            schema: of the records.
            batch_size: global.
            max_seq_length: at least the longest record.

        Returns:
            name -> array [N, ...]; a classifier's logits as "logits".
        """
        dataset = self.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.prediction_dataset(
                serialized,
                schema,
                batch_size=batch_size,
                max_seq_length=max_seq_length,
                input_context=context,
            )
        )
        if self._step is None:
            # With its signature known there is one trace for all lengths.
            signature = [dataset.element_spec]
            self._step = tf.function(self._outputs, input_signature=signature, autograph=False)
        batches = [tf.nest.map_structure(np.asarray, self._step(batch)) for batch in dataset]
        outputs = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        real = outputs.pop("example_weights") > 0
        order = np.argsort(outputs.pop("example_id")[real], kind="stable")
        return {name: values[real][order] for name, values in outputs.items()}

    def _outputs(self, batch):
        outputs = self.strategy.run(_decision, args=(self.model, batch))
        return tf.nest.map_structure(lambda x: self.strategy.gather(x, axis=0), outputs)


def _decision(model, batch):
    outputs = model(batch, training=False)
    if not isinstance(outputs, dict):
        outputs = {"logits": outputs}
    of_tokens = ("start_logits", "end_logits")  # as long as the batch's longest input
    kept = {name: value for name, value in outputs.items() if name not in of_tokens}
    return kept | {name: batch[name] for name in ("example_id", "example_weights")}


class _Evaluator(orbit.AbstractEvaluator):
    """Predicts the dev set and scores it, when Orbit asks."""

    def __init__(self, data, model, experiment, strategy):
        self.data, self.experiment = data, experiment
        self.predict = Predictor(model, strategy)
        self.serialized = data.read_evaluation()
        self.baseline = data.baseline()

    def evaluate(self, num_steps=-1):
        task, options = self.experiment.task, self.experiment.training
        outputs = self.predict(
            self.serialized, self.data.schema, options.batch_size, task.max_seq_length
        )
        results = self.data.score(outputs, os.path.join(options.model_dir, "predictions"))
        report = {"metrics": results, "baseline": self.baseline}
        write_json(os.path.join(options.model_dir, scores.RESULTS_FILE), report)
        return results


def run(experiment, allow_config_change=False):
    """Fine-tunes as `experiment` (FinetuningExperiment) says; returns the dev set's metrics.

    Leaves in `model_dir`: checkpoints and TensorBoard logs, predictions/, eval_results.json and
    preset/, the fine-tuned model with its vocabulary.
    """
    task, options = experiment.task, experiment.training
    _require_paths(task, options)
    init_from = presets.fetch(task.init_from)
    vocab_file, *normalization = presets.vocabulary(init_from)
    stored = formats.read(init_from)
    strategy = strategies.set_up(options)
    work_dir = os.path.join(options.model_dir, "records")
    data = make_data(task, WordPieceTokenizer(vocab_file, *normalization), work_dir)
    _check(experiment, data, vocab_file, stored.model_config)
    inputs = {"task.data_dir": data.files(), "task.init_from": _model_files(init_from, vocab_file)}
    same = identity.save_config(experiment, options.model_dir, allow_config_change, inputs)

    train_file = os.path.join(work_dir, "train.tfrecord")
    # Without a checkpoint, the task's files may have been mended since.
    begun = same and checkpoints.latest(options.model_dir)
    if not (begun and os.path.exists(train_file)):
        say(f"{data.write_training_records(train_file):,} training records in {train_file}")
    num_train_steps = _num_train_steps(experiment, train_file)
    with strategy.scope():
        model = presets.build(stored)
        if task.from_scratch:
            model = ConvBertEncoder(getattr(model, "encoder", model).config)
        model = data.make_model(model)
    is_squad = isinstance(data, SquadData) and data.version2
    loss_options = {"answerable_weight": task.answerable_weight} if is_squad else {}
    evaluator = _Evaluator(data, model, experiment, strategy)
    if options.best_metric:  # some of SQuAD 2.0's need questions of their kind
        checkpoints.check_metric(options.best_metric.removeprefix("best_"), evaluator.baseline)
    results = loop.fit(
        FinetuningTask(model, _training_data(experiment, data, train_file, model), **loss_options),
        options,
        num_train_steps,
        strategy,
        num_hidden_layers=model.encoder.config.num_hidden_layers,
        evaluator=evaluator,
        evaluation=_evaluation(task, inputs),
    )
    preset_dir = os.path.join(options.model_dir, "preset")
    lower_case, strip_accents = normalization
    presets.save(model, preset_dir, vocab_file, lower_case, data.serving(), strip_accents)
    if remark := scores.remark(results, evaluator.baseline):
        say(remark)
    return results


def _require_paths(task, options):
    if not task.init_from or not task.data_dir or not options.model_dir:
        raise UserError(
            "set config.task.init_from (a preset), config.task.data_dir and "
            "config.training.model_dir."
        )


def _check(experiment, data, vocab_file, model_config):
    """Refuses what is known to be impossible, before anything is made."""
    task, metric = experiment.task, experiment.training.best_metric
    data.files()
    check_vocabulary(vocab_file, model_config)
    check_length(task.max_seq_length, model_config)
    if metric:
        checkpoints.check_metric(metric, data.metric_names)
    if not checkpoints.latest(experiment.training.model_dir):
        data.check(experiment.training.batch_size)


def _model_files(init_from, vocab_file):
    """The files by which a model to start from is known."""
    weights = ("*.safetensors", "*.h5", "*.bin") if presets.is_huggingface(init_from) else ()
    found = (glob.glob(os.path.join(glob.escape(init_from), kind)) for kind in weights)
    # Of a preset, config.json holds the hash of the weights.
    return [vocab_file, os.path.join(init_from, CONFIG_FILE), *itertools.chain(*found)]


def _num_train_steps(experiment, train_file):
    """The length of the run: what `training.num_train_steps` says, or the epochs."""
    task, options = experiment.task, experiment.training
    in_epoch = input_pipeline.steps_per_epoch(train_file, options.batch_size)
    steps = options.num_train_steps or max(1, int(in_epoch * task.num_train_epochs))
    say(f"{steps:,} steps of {options.batch_size} examples, {steps / in_epoch:.3g} epochs")
    return steps


def _training_data(experiment, data, train_file, model):
    """A function (start_step, context) -> dataset of the training records."""
    task, options = experiment.task, experiment.training

    def train_dataset(start_step, context):
        return input_pipeline.finetuning_dataset(
            train_file,
            data.schema,
            batch_size=options.batch_size,
            max_seq_length=task.max_seq_length,
            seed=options.seed,
            start_step=start_step,
            bucket=options.strategy != "tpu" and not options.jit_compile,
            vocab_size=model.encoder.config.vocab_size,
            input_context=context,
        )

    return train_dataset


def _evaluation(task, inputs):
    """What the dev set's metrics depend on besides the weights."""
    names = "name max_seq_length max_query_length doc_stride max_answer_length n_best_size"
    settings = {name: getattr(task, name) for name in (*names.split(), "beam_size")}
    return settings | {"data_dir": identity.hashes(inputs["task.data_dir"][1:])}
