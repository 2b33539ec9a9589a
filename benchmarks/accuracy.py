"""Train and evaluate every built-in learner by one documented command each, and write `docs/results.md` from the runs.

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
TABLE = Path("docs/results.md")
PUBLISHED = Path(__file__).with_name("published.toml")

# Each learner's own defaults are the settings, but for the budget (so many steps that the time decides).
COMMANDS = {
    "protonet": "train --learner protonet --dataset omniglot --steps 1000000 --budget 5m"
    " --set train.ways=100 --set train.queries=1",
    "maml": "train --learner maml --dataset omniglot --steps 1000000 --budget 10m",
    "fomaml": "train --learner fomaml --dataset omniglot --steps 1000000 --budget 10m",
    "reptile": "train --learner reptile --dataset omniglot --steps 1000000 --budget 15m",
    "leo": "train --learner leo --dataset omniglot --steps 1000000 --budget 15m",
    "mann": "train --learner mann --dataset omniglot --steps 1000000 --budget 15m",
    "cnp-sinusoid": "train --learner cnp --dataset sinusoid --budget 5m",
    "maml-sinusoid": "train --learner maml --dataset sinusoid --budget 5m",
}
EVALUATE = {"maml-sinusoid": "--steps 0,1,5,10"}


def finished(folder: Path) -> bool:
    """Return whether a run is trained and evaluated."""
    status = folder / "status.json"
    done = status.is_file() and json.loads(status.read_text())["outcome"] == "finished"
    return done and any((folder / "evaluation").glob("*.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(COMMANDS), action="append", help="run these (again if need be)")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    chosen = parser.parse_args(arguments)
    metaforge = [sys.executable, "-m", "metaforge"]
    for name, command in COMMANDS.items():
        folder = FOLDER / name
        if chosen.table or (chosen.only and name not in chosen.only) or (finished(folder) and not chosen.only):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([*metaforge, *shlex.split(command), "--out", str(folder)], check=True)
        subprocess.run([*metaforge, "evaluate", str(folder), *shlex.split(EVALUATE.get(name, ""))], check=True)
    runs = [str(FOLDER / name) for name in COMMANDS if finished(FOLDER / name)]
    report = [sys.executable, "-m", "metaforge.report.results", str(TABLE), *runs, "--published", str(PUBLISHED)]
    return subprocess.run(report, check=True).returncode


if __name__ == "__main__":
    raise SystemExit(main())
