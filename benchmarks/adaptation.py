"""How long a learner takes to adapt to one task, and how much memory it needs: `python -m benchmarks.adaptation`.

Each run with a record of Omniglot is measured in its own process, with the configuration of the record. The values are
initial ones, because neither the time nor the memory depends on them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.accuracy import RECORDS
from benchmarks.memory import peak_mib
from benchmarks.timing import log, median
from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.keys import make_key
from metaforge.cli.app import app
from metaforge.config.resolve import resolve
from metaforge.config.sources import file_layer
from metaforge.engine.batch import prepare_tasks
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components
from metaforge.system.machine import facts, prepare

FILE = RECORDS / "adaptation.json"
ROUNDS, STEPS = 20, 3


def measure(name: str) -> dict[str, Any]:
    """Return the milliseconds of CPU time of adapting to a task and predicting its queries, and the parameters."""
    prepare(1)
    parts = Components(resolve([file_layer(RECORDS / name / "config.toml")], scan()))
    settings = parts.resolved.run
    spec = parts.dataset.spec(settings.evaluate.split, parts.task_shape)
    learner = parts.learner(spec)
    values = learner.init(make_key(settings.seed, "init"))
    batch = parts.dataset.sample(settings.evaluate.split, spec.shape, 0, 1, seed=settings.evaluate.seed)
    task, before, seconds = prepare_tasks(one_task(batch), torch.device("cpu"), parts.dtype), peak_mib(), []
    for _ in range(ROUNDS):
        start = time.process_time()
        with torch.no_grad():
            learner.predict(values, learner.adapt(values, task.support), task.query.x)
        seconds.append(time.process_time() - start)
    return {
        "milliseconds": 1000 * median(seconds),
        "memory_mib": peak_mib() - before,
        "parameters": sum(value.numel() for value in split_state(values)[0].values()),
    }


def measure_training(name: str) -> dict[str, Any]:
    """Return the peak memory in MiB of a process that takes a few outer steps."""
    config, changes = RECORDS / name / "config.toml", ["train.budget=none", "engine.threads=1", "evaluate.tasks=2"]
    changes += ["train.init_from=none", "train.init_patterns=[]"]
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--config", str(config), "--steps", str(STEPS), "--out", f"{folder}/run", "--json"]
        with contextlib.redirect_stdout(io.StringIO()):
            app([*words, *(word for change in changes for word in ("--set", change))], standalone_mode=False)
    return {"training_mib": peak_mib()}


def in_a_process(what: str, name: str) -> dict[str, Any]:
    """Return what is measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.adaptation", what, name]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the runs that have records, and write them; with two words, measure one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="names of records; or `adapt NAME` or `train NAME`, in this process")
    words = parser.parse_args(arguments).words
    if len(words) == 2 and words[0] in ("adapt", "train"):
        found = (measure if words[0] == "adapt" else measure_training)(words[1])
        print(json.dumps(found))  # noqa: T201
        return 0
    known = json.loads(FILE.read_text()) if FILE.is_file() else {"runs": {}}
    names = words or sorted(path.parent.name for path in RECORDS.glob("*/config.toml"))
    for name in names:
        if 'name = "omniglot"' not in (RECORDS / name / "config.toml").read_text():
            continue
        log(name)
        known["runs"][name] = in_a_process("adapt", name) | in_a_process("train", name)
    FILE.write_text(json.dumps({**known, "machine": facts()}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
