"""One Orbit training loop for every task: from the last checkpoint to the end, watched and saved.

The step itself, and what a task is, stands in trainer.py.
"""

import os

import numpy as np
import orbit
import tensorflow as tf

from convbert_tf import files
from convbert_tf.console import Progress, UserError, reason, say
from convbert_tf.training import checkpoints, monitoring, optimization, strategies
from convbert_tf.training.optimization import FusedAdamW
from convbert_tf.training.trainer import Interrupted, Interruption, Trainer

_NO_METRIC = ("", "none")  # values of `best_metric` by which no best checkpoint is kept


def fit(
    task,
    training,
    num_train_steps,
    strategy,
    num_hidden_layers=None,
    evaluator=None,
    evaluation=None,
):
    """Trains `task` up to step `num_train_steps`, from the last checkpoint of its model_dir if any.

    SIGTERM or Ctrl-C ends it after the step that is being computed: it saves a checkpoint, says so
    and raises SystemExit with status 143 or 130.

    Args:
        task: see trainer.py.
        training: TrainingConfig; `model_dir` takes what checkpoints and monitoring write.
        num_train_steps: length of the run, and of the learning-rate schedule.
        strategy: of `strategies.set_up`; the task's model was made in its scope.
        num_hidden_layers: for layer-wise learning rates.
        evaluator: orbit.AbstractEvaluator; the trainer itself (held-out losses) if None and the
            task has an `eval_dataset`.
        evaluation: JSON-able dict of what its results depend on besides the weights, for
            checkpoints.Best.

    Returns:
        dict of the last evaluation's metrics; empty without evaluation.

    Raises:
        UserError: a loss is not finite, a record is damaged, or model_dir cannot be written.
    """
    if evaluator is None:
        check_best_metric(task, training)
    with strategy.scope():
        optimizer = optimization.create(training, num_train_steps, num_hidden_layers, FusedAdamW)
    trainer = Trainer(task, optimizer, training, strategy, Interruption())
    if evaluator is None and task.eval_dataset is not None:
        evaluator = trainer
    with files.only_one(training.model_dir if strategies.is_chief(strategy) else ""):
        return _run(trainer, evaluator, num_train_steps, evaluation)


def check_best_metric(task, training):
    """Refuses a `best_metric` that the task's own evaluation does not give."""
    if training.patience and training.best_metric in _NO_METRIC:
        raise UserError("patience needs a best_metric: set --config.training.best_metric.")
    if training.best_metric in _NO_METRIC:
        return
    if task.eval_dataset is None:
        raise UserError("best_metric needs an evaluation: set --config.data.eval_dir, or leave it.")
    zeros = {name: np.zeros(shape) for name, shape in task.count_shapes.items()}
    checkpoints.check_metric(training.best_metric, task.metrics(zeros))


def _run(trainer, evaluator, num_train_steps, evaluation):
    run = _Run(trainer, evaluator, num_train_steps, evaluation)
    try:
        with trainer.interruption:
            return run.to_the_end()
    except Interrupted as error:
        run.save()
        say(f"{error}: saved at step {run.step:,}; the same command goes on from there")
        raise SystemExit(128 + error.signum) from None
    except (tf.errors.OpError, OSError) as error:
        raise _told(error, trainer.task, trainer.training.model_dir) from error


def _told(error, task, model_dir):
    """`error` as a UserError, where it is known what it comes from; else `error` itself."""
    explain = getattr(task, "explain", None)
    machine = (OSError, tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError)
    data = isinstance(error, tf.errors.OpError) and not isinstance(error, machine)
    told = explain(error) if explain and data else error
    if "OOM when allocating" in str(error):
        return UserError(
            "there is not enough memory for a step: take a smaller batch_size, or "
            "gradient_accumulation_steps, which computes it in parts."
        )
    if told is error and isinstance(error, machine):
        return UserError(
            f"the run ended by an error of the machine ({reason(error)}); the checkpoints in "
            f"{model_dir} are whole, and the same command goes on from the last."
        )
    return told


class _Run:
    """One call of `fit`: the trainer under Orbit's controller, with what watches and saves it."""

    def __init__(self, trainer, evaluator, num_train_steps, evaluation=None):
        training, self.trainer = trainer.training, trainer
        self.training, self.evaluator, self.num_train_steps = training, evaluator, num_train_steps
        self.chief = strategies.is_chief(trainer.strategy)
        checkpoint, directory = trainer.checkpoint, training.model_dir
        self.manager = checkpoints.Manager(
            checkpoint,
            os.path.join(directory, "checkpoints"),
            trainer.global_step,
            training.keep_checkpoints,
            training.checkpoint_interval if self.chief else None,
            self._initialize if training.init_from else None,
        )
        self.best = None
        if training.best_metric not in _NO_METRIC and evaluator:
            self.best = checkpoints.Best(
                checkpoint,
                trainer.global_step,
                directory,
                training.best_metric,
                evaluation,
                begun=bool(self.manager.latest_checkpoint),
                saves=self.chief,
            )

    def _initialize(self):
        training, trainer = self.training, self.trainer
        said = checkpoints.initialize(
            trainer.task.model, trainer.optimizer, training.init_from, training.init_optimizer
        )
        if self.chief:
            print(said, file=self.terminal, flush=True)

    @property
    def step(self):
        return int(self.trainer.global_step.numpy())

    def save(self):
        """Saves a checkpoint of this step, if there is none."""
        if self.chief:
            self.manager.save(checkpoint_number=self.step, check_interval=False)

    def to_the_end(self):
        results = {}
        with monitoring.quiet_orbit() as self.terminal:
            controller = self._controller()
            start, end = self.step, self.num_train_steps
            if start > end:
                raise UserError(f"the run is at step {start:,}, beyond its end at {end:,}.")
            self._watch(controller, start)
            for stop in _stops(start, end, self.training.eval_interval if self.evaluator else 0):
                controller.train(stop, checkpoint_at_completion=stop == end)
                if self.evaluator is not None:
                    results = self._evaluate(controller)
                if stop < end and self._has_stalled():
                    self.save()
                    break
            if self.chief:
                self.progress.close()
        return results

    def _controller(self):
        train, held_out = (
            os.path.join(self.training.model_dir, kind) if self.chief else None
            for kind in ("train", "eval")
        )
        global_step = self.trainer.global_step
        return orbit.Controller(
            strategy=self.trainer.strategy,
            trainer=self.trainer,
            evaluator=self.evaluator,
            global_step=global_step,
            steps_per_loop=min(self.training.steps_per_loop, self.num_train_steps),
            checkpoint_manager=self.manager,
            summary_manager=monitoring.summary_manager(train, global_step),
            eval_summary_dir=held_out,  # where it is None, Orbit takes training's manager
            eval_summary_manager=monitoring.summary_manager(held_out, global_step),
        )

    def _watch(self, controller, start):
        """Sets up what is written of the run while it goes; by one worker of several."""
        if not self.chief:
            return
        directory, end = self.training.model_dir, self.num_train_steps
        self.log = monitoring.MetricsLog(directory, start)
        monitoring.write_config(directory)
        self.progress = Progress(
            "training", total=end, unit="steps", start=start, stream=self.terminal
        )
        controller.train_actions = [
            monitoring.Report(self.progress, self.trainer.global_step, self.log)
        ]
        if start:
            print(f"resumed from the checkpoint of step {start:,}", file=self.terminal, flush=True)

    def _evaluate(self, controller):
        interruption = self.trainer.interruption
        # Of several workers none may leave the others alone in a reduction.
        interruption.raises = not strategies.is_multi_worker(self.trainer.strategy)
        if interruption.raises and interruption.signum:
            raise Interrupted(interruption.signum)
        output = controller.evaluate(steps=self.training.num_eval_steps or -1)
        interruption.raises = False
        # Without what Orbit adds: the evaluation's own speed, which reads as the training's.
        results = {k: float(v) for k, v in output.items() if k != "steps_per_second"}
        if self.chief:
            line = f"step {self.step:,}: {monitoring.format_metrics(results)}"
            print(line, file=self.terminal, flush=True)
            self.log.write("eval", self.step, results)
        if self.best is not None:
            self.best.update(results, self.step)
        return results

    def _has_stalled(self):
        """Whether the last `patience` evaluations brought nothing better, which is said then.

        It follows from the step of the best one, so that a run that was killed stops where it
        would have, and one that has stopped stops again.
        """
        best, patience = self.best, self.training.patience
        if not patience or best is None or best.step is None or best.step >= self.step:
            return False
        since = len(_stops(best.step + 1, self.step, self.training.eval_interval))
        if since < patience:
            return False
        if self.chief:
            line = (
                f"stopped at step {self.step:,}: {since} evaluation{'s' * (since > 1)} without a "
                f"better {best.metric} than {best.value:.4g} at step {best.step:,}"
            )
            print(line, file=self.terminal, flush=True)
        return True


def _stops(start, end, interval):
    """Steps to evaluate at: every `interval` (if any) after 0 and from `start` on, and `end`.

    At `start` too: the run may have been killed between its checkpoint and the evaluation there.
    """
    first = max(-(-start // interval), 1) * interval if interval else end
    between = range(first, end, interval) if interval else []
    return [*between, end]
