"""Measuring side by side: each variant in a process of its own, computing in turns; no TensorFlow.

The parent starts a `Worker` a variant and asks one after the other to compute; so all variants see
the same machine, only one computes at a time, and a peak of memory belongs to one variant. Both
sides talk in JSON lines:

    to the worker     its work (a dict); then {"run": n} any number of times; at last {"stop": true}
    from the worker   {"warmed_up", "parameters", "windows", "versions"} when it is ready;
                      {"seconds"} a run; {"peak_bytes", "device_peak_bytes", "details"}; or
                      {"error"} in place of any of these

A worker's module, run as a program, hands `serve` a dict of makers: functions of the work to a
`Ready`.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from convbert_tf import console
from convbert_tf.console import UserError, reason

ROOT = pathlib.Path(__file__).parents[2]
# Runs module argv[1] where the packages argv[2:] cannot be imported.
_START = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))
runpy.run_module(sys.argv[1], run_name="__main__")
"""
TURN_SECONDS = 0.2  # a turn computes at least so long, in several runs if need be
MIN_ROUNDS = 3
PACKAGES = ("tensorflow", "keras", "tf-keras", "jax", "torch", "transformers", "tokenizers")
PACKAGES += ("ai-edge-litert", "onnxruntime", "openvino")


@dataclasses.dataclass
class Ready:
    """What a maker hands over: `run(n)` computes n times and waits for the end of it."""

    run: Callable[[int], None]
    parameters: int = 0  # of the model
    warm_up: int = 2  # runs before the first that counts
    windows: int = 0  # of questions' contexts, in a run
    device_peak: Callable[[], int] = lambda: 0  # bytes of the accelerator's memory
    details: Callable[[], dict] = dict  # more to tell at the end, as JSON holds it


class WorkerError(Exception):
    """A worker could not do its work; the message says why in one line."""


# --- the parent's side ---


class Worker:
    """A process that holds one variant, warmed up.

    Args:
        python: the interpreter.
        module: name of the one to run.
        work: JSON-able dict; `what` names the maker, `threads` the cores to use.
        environment: variables to set on top of the parent's.
        without: packages that count as not installed, for those that others load unasked.
        limit: seconds that one answer may take before the process is killed.

    Attributes:
        warmed_up: whether it has computed before.
        parameters: of the model.
        windows: of questions' contexts in a run.
        versions: name -> version of the packages that it has loaded.
        details: of a Ready; when it is closed.
        set_up_seconds: from the start of the process to the end of the warm-up.

    Raises:
        WorkerError: also by `run` and `close`.
    """

    def __init__(self, python, module, work, environment=None, without=(), limit=1800):
        self._limit, self._late = limit, False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, as long as the worker
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        self._process = subprocess.Popen(
            [python, "-c", _START, module, *without],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": path} | (environment or {}),
            text=True,
        )
        began = time.monotonic()
        try:
            reply = self._ask(work)
        except WorkerError:
            self.kill()
            raise
        self.warmed_up, self.parameters = reply["warmed_up"], reply["parameters"]
        self.windows, self.details = reply["windows"], {}
        self.versions, self.set_up_seconds = reply["versions"], time.monotonic() - began

    def run(self, n):
        """Seconds of one run, the mean of n."""
        return self._ask({"run": n})["seconds"] / n

    def close(self):
        """Ends the process; returns its peak memory in bytes, and that on the accelerator."""
        reply = self._ask({"stop": True})
        self.kill(wait=30)
        self.details = reply["details"]
        return reply["peak_bytes"], reply["device_peak_bytes"]

    def kill(self, wait=0):
        """Ends the process, by force after `wait` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def _ask(self, message):
        timer = threading.Timer(self._limit, self._give_up)
        timer.start()
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(self._reason())
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _give_up(self):
        self._late = True
        self._process.kill()

    def _reason(self):
        """Why there was no answer."""
        if self._late:
            return f"took over {self._limit} s"
        status = self._process.wait()
        if status == -9:
            return "killed, most likely for want of memory"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"ended with status {status}: {lines[-1] if lines else 'no message'}"


class Laboratory:
    """Starts workers, each in the first interpreter that has what it needs.

    Args:
        options: benchmark.Options.
        rulers: benchmark.Variants to measure along with everything else.
    """

    def __init__(self, options, rulers=()):
        self.options, self._ruler_variants = options, rulers
        self.threads = options.threads or len(_usable_cores())
        names = ["tensorflow", "tensorflow-text", "tf-keras", "jax", "torch", "transformers"]
        names += ["tokenizers", "accelerate", "onnxruntime", "openvino", "ai-edge-litert"]
        self._pythons = {
            python: installed(python, names) for python in (sys.executable, *options.peers_python)
        }
        self.versions = {}  # package -> versions that took part
        self._rulers = {}

    def start(self, variant, work):
        """A Worker for `variant`; raises WorkerError("not installed") where nothing has it."""
        python = self._interpreter(variant.needs)
        if python is None:
            raise WorkerError("not installed")
        base = {"threads": self.threads, "precision": self.options.precision, "what": variant.what}
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", **variant.environment}
        worker = Worker(
            python, variant.module, base | work | variant.options, environment, variant.without
        )
        for name, version in worker.versions.items():
            self.versions.setdefault(name, set()).add(version)
        return worker

    def start_all(self, group):
        """Yields the name of each variant of the group, and its Worker or why there is none.

        Two start at once, as most of that takes one core; on JAX one after the other, since XLA
        times kernels on GPUs to choose among them.
        """
        at_once = 1 if self.options.backend == "jax" else 2
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            futures = [(v.name, pool.submit(self.start, v, group.work)) for v in group.variants]
            for name, future in futures:
                try:
                    yield name, future.result()
                except WorkerError as error:
                    yield name, str(error)

    def _interpreter(self, needs):
        """The first that has all of `needs`, or None."""
        for python, packages in self._pythons.items():
            if all(_has(packages, need) for need in needs):
                return python
        return None

    def rulers(self):
        """name -> Worker of the matrix products, kept for the whole run."""
        if not self._rulers:
            for variant in self._ruler_variants:
                with contextlib.suppress(WorkerError):
                    self._rulers[variant.name] = self.start(variant, {})
        return self._rulers

    def describe(self, precisions=None):
        """The machine and the software, as one line."""
        precision = " and ".join(precisions or [self.options.precision])
        model = platform.machine()
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
            model = models[0] if models else model
        found = [f"{name} {', '.join(sorted(v))}" for name, v in sorted(self.versions.items())]
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        units = "with" if console.has_bfloat16_units() else "without"
        machine = f"{model} {units} bfloat16 units, {threads}"
        return "; ".join([machine, precision, *found])

    def close(self):
        for worker in self._rulers.values():
            worker.kill()


def _has(packages, need):
    name, _, below = need.partition("<")
    return name in packages and (not below or int(packages[name].split(".")[0]) < int(below))


def interleave(workers, rounds, seconds, report=lambda done: None):
    """Has `workers` (name -> Worker) compute in turns, each round in another order.

    Args:
        rounds: turns of each.
        seconds: after so long no new round is begun, if `MIN_ROUNDS` are done.
        report: a function that is called with the number of rounds done.

    Returns:
        name -> seconds of one run, a number a round; and name -> message of those that failed.
    """
    times, failed = {name: [] for name in workers}, {}
    counts = _turns(workers, failed)
    began = time.monotonic()
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.monotonic() - began > seconds:
            break
        names = [name for name in workers if name not in failed]
        for name in names[done % len(names) :] + names[: done % len(names)] if names else ():
            try:
                times[name].append(workers[name].run(counts[name]))
            except WorkerError as error:
                failed[name] = str(error)
        report(done + 1)
    return times, failed


def _turns(workers, failed):
    """Runs in a turn of each; of those that were warmed up, one more tells what a run takes."""
    counts = {}
    for name, worker in workers.items():
        try:
            counts[name] = max(1, round(TURN_SECONDS / worker.run(1))) if worker.warmed_up else 1
        except WorkerError as error:
            failed[name] = str(error)
    return counts


def spread(seconds):
    """Distance of the quartiles over the median; 0 for fewer than three numbers."""
    if len(seconds) < 3:
        return 0.0
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median


_PROBE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def installed(python, names):
    """Versions of those of the packages `names` that the interpreter `python` has: name -> str."""
    try:
        process = subprocess.run(
            [python, "-c", _PROBE, *names], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{python} is no Python that runs: {error}") from error
    return json.loads(process.stdout)


# --- the worker's side ---


def serve(makers):
    """Does the work that comes on standard input by the maker that it names, until it is stopped.

    Whatever libraries print goes to standard error, so that the answers stay readable.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**reply):
        print(json.dumps(reply), file=answers, flush=True)

    try:
        work = json.loads(sys.stdin.readline())
        if hasattr(os, "sched_setaffinity"):  # not on macOS: there, only the libraries' settings
            os.sched_setaffinity(0, _usable_cores()[: work["threads"]])
        ready = makers[work["what"]](work)
        for _ in range(ready.warm_up):
            ready.run(1)
        answer(
            warmed_up=ready.warm_up > 0,
            parameters=int(ready.parameters),
            windows=int(ready.windows),
            versions=_loaded_versions(),
        )
        for line in sys.stdin:
            request = json.loads(line)
            if "stop" in request:
                device_peak = int(ready.device_peak())
                details = ready.details()
                answer(peak_bytes=_peak_bytes(), device_peak_bytes=device_peak, details=details)
                break
            answer(seconds=_seconds(ready.run, request["run"]))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {reason(error)}")
        raise
    finally:
        answers.flush()


def _seconds(run, n):
    began = time.perf_counter()
    run(n)
    return time.perf_counter() - began


def repeat(step):
    """`run` of a Ready for a function that computes once and waits."""

    def run(n):
        for _ in range(n):
            step()

    return run


def _usable_cores():
    """Numbers of the cores this process may use; where the system does not say, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _peak_bytes():
    """Peak of this process's resident memory.

    Linux hands ru_maxrss down through fork and exec, so a parent's larger peak would count; VmHWM
    is the process's own.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _loaded_versions():
    loaded = [name for name in PACKAGES if sys.modules.get(name.replace("-", "_"))]
    return {name: importlib.metadata.version(name) for name in loaded}


def make_batch(vocab_size, batch, length):
    """Full inputs of random tokens: dict of int32 [B, T], the same in every process."""
    import numpy as np

    ids = np.random.default_rng(0).integers(min(1000, vocab_size // 2), vocab_size, (batch, length))
    return {
        "input_ids": ids.astype("int32"),
        "input_mask": np.ones((batch, length), "int32"),
        "segment_ids": np.repeat((np.arange(length)[None] >= length // 2), batch, 0).astype(
            "int32"
        ),
    }
