"""Prints the dev-set scores of fine-tuning runs beside the task's baseline, one line a run.

python tools/compare_runs.py --run=runs/cola --run=runs/cola-scratch
"""

import os

from absl import flags

from convbert_tf import console, files

RUNS = flags.DEFINE_multi_string("run", None, "model_dir of a run; repeat for more.", required=True)


def main(_):
    for run in RUNS.value:
        path = os.path.join(run, "eval_results.json")
        report = files.read_json(path, "the result of tools/finetune.py")
        if not isinstance(report, dict) or not {"metrics", "baseline"} <= set(report):
            raise console.UserError(f"{path} is no result of tools/finetune.py.")
        scores = "  ".join(
            f"{name} {value:.4g} (baseline {report['baseline'][name]:.4g})"
            for name, value in report["metrics"].items()
            if name in report["baseline"] and name != "total"
        )
        console.say(f"{os.path.basename(os.path.normpath(run)):24} {scores}")


if __name__ == "__main__":
    console.run(main)
