"""Train and evaluate each built-in learner by one documented command, and write `docs/results.md` from their records.

`python -m benchmarks.accuracy` (or `make results`) needs the real Omniglot images and about ten hours. It skips
runs that are trained and evaluated; `--only NAME` runs only that learner, `--table` only writes the page.
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

# The settings are the learner's defaults, except those that the command names. Every run has a time budget. On Omniglot
# the number of steps is so large that the budget ends the run; on sinusoids the default number of steps may end it
# earlier. ProtoNet trains on tasks with more ways; a pooled network with 32 filters is used where it learns more in
# the same time.
COMMANDS = {
    "protonet": "train --learner protonet --dataset omniglot --steps 1000000 --budget 5m"
    " --set train.ways=100 --set train.queries=1",
    "matching": "train --learner matching --dataset omniglot --steps 1000000 --budget 15m",
    "relation": "train --learner relation --dataset omniglot --steps 1000000 --budget 15m",
    "r2d2": "train --learner r2d2 --dataset omniglot --steps 1000000 --budget 10m",
    "siamese": "train --learner siamese --dataset omniglot --steps 1000000 --budget 15m",
    "metaopt-svm": "train --learner metaopt-svm --dataset omniglot --steps 1000000 --budget 15m",
    "eb-meta-networks": "train --learner eb-meta-networks --dataset omniglot --steps 1000000 --budget 10m",
    "meta-networks": "train --learner meta-networks --dataset omniglot --steps 1000000 --budget 15m"
    " --set learner.norm=transductive",
    "maml": "train --learner maml --dataset omniglot --steps 1000000 --budget 10m --set backbone.variant=pool-32",
    "fomaml": "train --learner fomaml --dataset omniglot --steps 1000000 --budget 10m --set backbone.variant=pool-32",
    "reptile": "train --learner reptile --dataset omniglot --steps 1000000 --budget 15m --set backbone.variant=pool-32",
    "leo": "train --learner leo --dataset omniglot --steps 1000000 --budget 15m",
    "snail": "train --learner snail --dataset omniglot --steps 1000000 --budget 10m --set learner.norm=transductive",
    "in-context": "train --learner in-context --dataset omniglot --steps 1000000 --budget 15m --set task.queries=9",
    "ntm-copy": "train --learner ntm --preset ntm-copy --budget 10m",
    "mamlpp": "train --learner mamlpp --dataset omniglot --steps 1000000 --budget 15m",
    "maml-meta-sgd": "train --learner maml --adapter meta-sgd --dataset omniglot --steps 1000000 --budget 15m"
    " --set backbone.variant=pool-32",
    "maml-mc-lslr": "train --learner maml --adapter meta-curvature,lslr --dataset omniglot --steps 1000000 --budget 15m"
    " --set backbone.variant=pool-32",
    "maml-taml-entropy": "train --learner maml --regularizer taml-entropy --dataset omniglot --steps 1000000"
    " --budget 15m --set backbone.variant=pool-32",
    "maml-taml-inequality": "train --learner maml --regularizer taml-inequality --dataset omniglot --steps 1000000"
    " --budget 15m --set backbone.variant=pool-32",
    "imaml": "train --learner imaml --dataset omniglot --steps 1000000 --budget 15m",
    "cavia": "train --learner cavia --dataset omniglot --steps 1000000 --budget 15m",
    "reptile-one-query": "train --learner reptile --dataset omniglot --steps 1000000 --budget 15m"
    " --set backbone.variant=pool-32 --set learner.transduction=false",
    "anil": "train --learner anil --dataset omniglot --steps 1000000 --budget 15m --set backbone.variant=stride-flat"
    " --set adapters.sgd.lr=0.15",
    "proto-maml": "train --learner proto-maml --dataset omniglot --steps 1000000 --budget 10m",
    "meta-lstm": "train --learner meta-lstm --dataset omniglot --steps 1000000 --budget 15m",
    "baseline": "train --learner baseline --dataset omniglot --steps 1000000 --budget 5m",
    "simpleshot": "train --learner simpleshot --dataset omniglot --steps 1000000 --budget 5m",
    "baseline-plus-plus": "train --learner baseline-plus-plus --dataset omniglot --steps 1000000 --budget 5m",
    "fine-tune": "train --learner fine-tune --dataset omniglot --steps 1000000 --budget 5m",
    "ftml": "train --learner ftml --dataset omniglot --budget 15m",
    "cnp-completion": "train --learner cnp --dataset omniglot:completion --steps 1000000 --budget 5m"
    " --set engine.threads=1",
    "anp-completion": "train --learner anp --dataset omniglot:completion --steps 1000000 --budget 5m"
    " --set engine.threads=1",
    "cnp-gaussian-process": "train --learner cnp --dataset gaussian-process --budget 5m --set engine.compile=off",
    "np-gaussian-process": "train --learner np --dataset gaussian-process --budget 5m --set engine.compile=off",
    "anp-gaussian-process": "train --learner anp --dataset gaussian-process --budget 5m --set engine.compile=off",
    "cnp-sinusoid": "train --learner cnp --dataset sinusoid --budget 5m",
    "maml-sinusoid": "train --learner maml --dataset sinusoid --budget 5m",
    "maml-meta-sgd-sinusoid": "train --learner maml --adapter meta-sgd --dataset sinusoid --budget 5m",
    "maml-mc-sinusoid": "train --learner maml --adapter meta-curvature,sgd --dataset sinusoid --steps 30000"
    " --budget 5m",
    "maml-mc-sinusoid-5": "train --learner maml --adapter meta-curvature,sgd --dataset sinusoid --steps 30000"
    " --budget 5m --set task.shots=5",
    "cavia-sinusoid": "train --learner cavia --dataset sinusoid --steps 30000 --budget 5m",
    "cavia-sinusoid-5": "train --learner cavia --dataset sinusoid --steps 30000 --budget 5m --set task.shots=5",
    "fine-tune-sinusoid": "train --learner fine-tune --dataset sinusoid --budget 5m",
    "ftml-sinusoid": "train --learner ftml --dataset sinusoid --budget 5m",
}
# The small budget on full-size images. The inner rates are smaller than the suggested ones, because the features are
# 2,304 or more instead of 64 or fewer.
_SMALL = "train --preset omniglot-seed --budget 15m --set adapters.sgd.lr=0.01 --learner"
_ANIL = "train --budget 15m --set adapters.sgd.lr=0.01 --preset omniglot-seed"
# Features of a trained prototypical network are longer than those of an untrained body, so that both rates are smaller.
_PRETRAINED = (
    "train --budget 15m --set adapters.sgd.lr=0.003 --set train.lr=0.0001 --set backbone.variant=stride-flat"
    f" --init-from {FOLDER / 'small-protonet'} --preset omniglot-seed"
)
COMMANDS |= {
    "small-maml": f"{_SMALL} maml",
    "small-maml-task-dropout": f"{_SMALL} maml --regularizer task-dropout",
    "small-maml-taml-entropy": f"{_SMALL} maml --regularizer taml-entropy",
    "small-maml-meta-sgd": "train --learner maml --adapter meta-sgd --preset omniglot-seed --budget 15m",
    "small-protonet": "train --learner protonet --preset omniglot-seed --steps 1000000 --budget 15m"
    " --set backbone.variant=stride-flat --set train.ways=20 --set train.queries=2 --set train.tasks=1",
    "small-anil": f"{_ANIL},anil-scratch",
    "small-anil-first-order": f"{_ANIL},anil-scratch --set learner.adjoint=first-order",
    "small-anil-pretrained": f"{_PRETRAINED},anil-pretrained",
    "small-anil-pretrained-frozen": f"{_PRETRAINED},anil-pretrained-frozen",
}
# LEO as it was published, and the learners with a memory, on fixed features: those of the network that `protonet`
# trained. A memory learns to bind them within hundreds of steps; on images it is thousands.
_FEATURES = FOLDER / "protonet.npz"
_STORED = f"--dataset stored-features --set dataset.file={_FEATURES} --steps 1000000"
_STREAM = f"{_STORED} --budget 10m --set dataset.standardise=true --set task.queries=9"
COMMANDS |= {
    "leo-features": f"train --learner leo {_STORED} --budget 5m",
    "mann": f"train --learner mann {_STREAM}",
    "ntm": f"train --learner ntm {_STREAM}",
}
PREPARE = dict.fromkeys(("leo-features", "mann", "ntm"), f"features {FOLDER / 'protonet'} --out {_FEATURES}")
# The runs from which a run starts: they are made first if they are missing.
STARTS_FROM = dict.fromkeys(PREPARE, "protonet") | dict.fromkeys(
    ("small-anil-pretrained", "small-anil-pretrained-frozen"), "small-protonet"
)
# How a run is evaluated, if not once as its configuration says.
_CONTEXTS = "--shots 10,50,100,300"
EVALUATE = {
    "maml-sinusoid": ["--steps 0,1,5,10"],
    "cnp-completion": [_CONTEXTS],
    "anp-completion": [_CONTEXTS],
    "ntm-copy": [f"--shots {length} --queries {length}" for length in (20, 40, 80, 120)],
}


def outcome(folder: Path) -> str:
    """Return the outcome of a run, `running` if it has not ended, or an empty string if there is no run."""
    status = folder / "status.json"
    return str(json.loads(status.read_text())["outcome"]) if status.is_file() else ""


def arguments_of(name: str) -> list[str]:
    """Return the arguments of a learner's command."""
    return [*shlex.split(COMMANDS[name]), "--out", str(FOLDER / name)]


def is_finished(name: str) -> bool:
    """Return whether a run with the current command is trained and evaluated."""
    folder = FOLDER / name
    if outcome(folder) != "finished" or not any((folder / "evaluation").glob("*.json")):
        return False
    return (folder / "command.txt").read_text().strip() == shlex.join(["metaforge", *arguments_of(name)])


def write_records(name: str) -> None:
    """Copy the files from which the page is written to the records: not checkpoints, pictures and metrics."""
    shutil.rmtree(RECORDS / name, ignore_errors=True)
    ignored = shutil.ignore_patterns("ckpt", "pictures", "metrics.jsonl", "report.md")
    shutil.copytree(FOLDER / name, RECORDS / name, ignore=ignored)


def run(name: str) -> None:
    """Train and evaluate one learner, after the run from which it starts."""
    source, folder, metaforge = STARTS_FROM.get(name), FOLDER / name, [sys.executable, "-m", "metaforge"]
    if source and not is_finished(source):
        run(source)
    if outcome(folder) == "running":
        raise SystemExit(f"The status of {folder} is `running`: wait, or delete the folder if the run was killed.")
    shutil.rmtree(folder, ignore_errors=True)
    if name in PREPARE:
        subprocess.run([*metaforge, *shlex.split(PREPARE[name])], check=True)
    subprocess.run([*metaforge, *arguments_of(name)], check=True)
    for evaluation in EVALUATE.get(name, [""]):
        subprocess.run([*metaforge, "evaluate", str(folder), *shlex.split(evaluation)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=sorted(COMMANDS),
        action="append",
        help="run only this one, again if it is finished (may be repeated)",
    )
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args(arguments)
    for name in () if options.table else options.only or COMMANDS:
        if options.only or not is_finished(name):
            run(name)
        write_records(name)
    runs = [str(RECORDS / name) for name in COMMANDS if (RECORDS / name).is_dir()]
    report = [sys.executable, "-m", "metaforge.results.comparison", str(TABLE), *runs, "--published", str(PUBLISHED)]
    return subprocess.run(report, check=True).returncode


if __name__ == "__main__":
    raise SystemExit(main())
