"""Train and evaluate each built-in learner by one documented command, and write `docs/results.md` from their records.

`python -m benchmarks.accuracy` (or `make results`) needs the real Omniglot images and about 90 minutes on two cores. A
run that is finished and evaluated is not repeated; `--only NAME` trains one, `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("runs/results")
RECORDS = Path(__file__).with_name("records")
TABLE = Path("docs/results.md")
PUBLISHED = Path(__file__).with_name("published.toml")

# A learner's own defaults are the settings, but for what a command names: a time budget for all (on Omniglot with so
# many steps that the time decides; on sinusoids the default number of steps may end a run sooner), training tasks of
# more classes for ProtoNet, and a pooled network of 32 filters where it learned more in the time.
COMMANDS = {
    "protonet": "train --learner protonet --dataset omniglot --steps 1000000 --budget 5m"
    " --set train.ways=100 --set train.queries=1",
    "maml": "train --learner maml --dataset omniglot --steps 1000000 --budget 10m --set backbone.variant=pool-32",
    "fomaml": "train --learner fomaml --dataset omniglot --steps 1000000 --budget 10m --set backbone.variant=pool-32",
    "reptile": "train --learner reptile --dataset omniglot --steps 1000000 --budget 15m --set backbone.variant=pool-32",
    "leo": "train --learner leo --dataset omniglot --steps 1000000 --budget 15m",
    "mann": "train --learner mann --dataset omniglot --steps 1000000 --budget 15m"
    " --set task.queries=9 --set backbone.filters=32 --set engine.chunk=16",
    "cnp-sinusoid": "train --learner cnp --dataset sinusoid --budget 5m",
    "maml-sinusoid": "train --learner maml --dataset sinusoid --budget 5m",
}
EVALUATE = {"maml-sinusoid": "--steps 0,1,5,10"}


def outcome(folder: Path) -> str:
    """Return how a run ended, `running` where it has not, or an empty string where there is none."""
    status = folder / "status.json"
    return str(json.loads(status.read_text())["outcome"]) if status.is_file() else ""


def line(name: str) -> list[str]:
    """Return the words of a learner's command, without the program."""
    return [*shlex.split(COMMANDS[name]), "--out", str(FOLDER / name)]


def finished(name: str) -> bool:
    """Return whether a run of the present command is trained and evaluated."""
    folder = FOLDER / name
    if outcome(folder) != "finished" or not any((folder / "evaluation").glob("*.json")):
        return False
    return (folder / "command.txt").read_text().strip() == shlex.join(["metaforge", *line(name)])


def keep(name: str) -> None:
    """Copy what the table is made of, task by task, to where it is committed: all but weights, pictures and curves."""
    shutil.rmtree(RECORDS / name, ignore_errors=True)
    leave = shutil.ignore_patterns("ckpt", "pictures", "metrics.jsonl", "report.md")
    shutil.copytree(FOLDER / name, RECORDS / name, ignore=leave)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(COMMANDS), action="append", help="run these (again if need be)")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    chosen = parser.parse_args(arguments)
    metaforge = [sys.executable, "-m", "metaforge"]
    for name in COMMANDS:
        folder = FOLDER / name
        if chosen.table or (chosen.only and name not in chosen.only):
            continue
        if finished(name) and not chosen.only:
            keep(name)
            continue
        if outcome(folder) == "running":
            raise SystemExit(f"{folder} says that it is running: wait, or delete it if it was cut short.")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([*metaforge, *line(name)], check=True)
        subprocess.run([*metaforge, "evaluate", str(folder), *shlex.split(EVALUATE.get(name, ""))], check=True)
        keep(name)
    runs = [str(RECORDS / name) for name in COMMANDS if (RECORDS / name).is_dir()]
    report = [sys.executable, "-m", "metaforge.results.comparison", str(TABLE), *runs, "--published", str(PUBLISHED)]
    return subprocess.run(report, check=True).returncode


if __name__ == "__main__":
    raise SystemExit(main())
