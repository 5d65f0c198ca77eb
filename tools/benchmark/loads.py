"""Loads on a model that answers texts: one at a time, in batches, by clients at once.

No TensorFlow and nothing of ours but the benchmark's worker: peers are put under the same loads.
"""

import json
import os
import queue
import threading
import time

from tools.benchmark.workers import Ready

LOADS = {"one": ("one", 1), "b8": ("batch", 8), "b32": ("batch", 32), "c8": ("clients", 8)}
SHOWN = {"one": "one at a time", "b8": "batches of 8", "b32": "batches of 32", "c8": "8 clients"}
_WARM_UP = 12  # requests of other lengths, so that what is compiled for a shape is there


def under_load(work, make):
    """A Ready whose runs answer one part of the texts after the other.

    Args:
        work: `rows`, path of a JSON list of the model's inputs; `load`, of LOADS; `parts` that the
            rows are cut into.
        make: a function without arguments that gives the function of a list of rows that answers
            them.
    """
    with open(work["rows"], encoding="utf-8") as file:
        rows = [tuple(row) for row in json.load(file)]
    answer = make()
    answer(rows[:1])
    details = {"first_answer_seconds": seconds_of_process(), "latencies": []}
    kind, size = LOADS[work["load"]]
    by_length = sorted(rows, key=lambda row: sum(map(len, row)))
    step = max(1, len(by_length) // _WARM_UP)
    for start in range(0, len(by_length), step):
        answer(by_length[start : start + (size if kind == "batch" else 1)])
    parts = iter([rows[i :: work["parts"]] for i in range(work["parts"])])

    def run(n):
        for _ in range(n):
            part = next(parts)
            if kind == "clients":
                details["latencies"] += _by_clients(answer, part, size)
                continue
            for start in range(0, len(part), size):
                began = time.perf_counter()
                answer(part[start : start + size])
                details["latencies"].append(time.perf_counter() - began)

    return Ready(run, warm_up=0, details=lambda: details | {"answers": len(rows)})


def _by_clients(answer, rows, number):
    """Has `number` threads ask for a row each until all are answered; returns the latencies."""
    waiting, latencies, errors = queue.SimpleQueue(), [], []
    for row in rows:
        waiting.put(row)

    def ask():
        try:
            while True:
                row = waiting.get_nowait()
                began = time.perf_counter()
                answer([row])
                latencies.append(time.perf_counter() - began)
        except queue.Empty:
            pass
        except Exception as error:  # raised again below
            errors.append(error)

    clients = [threading.Thread(target=ask) for _ in range(number)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if errors:
        raise errors[0]
    return latencies


def seconds_of_process():
    """How long this process has been there; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            started = int(file.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return 0.0
