"""Write `docs/which-method.md` from the records of trained runs and of `benchmarks.adaptation`.

`python -m benchmarks.which_method`: one table of all learners on one protocol, 5-way 1-shot on Omniglot.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import adaptation
from benchmarks.accuracy import RECORDS
from metaforge.results.comparison import EvaluatedRun, read_run
from metaforge.results.records import headline_score, scale_of
from metaforge.results.report_page import duration_text
from metaforge.results.tables import estimate_text, markdown_table

PAGE, WORDS = Path("docs/which-method.md"), Path(__file__).with_name("which_method.toml")
PROTOCOL = {"dataset": "omniglot", "split": "test", "ways": 5, "shots": 1, "tasks": 1000}
_INTRODUCTION = """# Which method?

Written by `python -m benchmarks.which_method` from the records of runs; do not edit it. The commands of the runs are in
[Results](results.md).

1. Five pictures per class and a classifier today: `protonet`. It trains fastest, has no inner rate to choose, and the
   trained run takes any number of classes and examples.
2. More examples per class: `r2d2`, whose classifier is fitted to the task by a formula.
3. Regression, a loss of your own, or a network that should change as a whole: `maml`, or `mamlpp` if it does not train
   stably.
4. Predictions with an uncertainty for curves: `anp`.
5. Examples that come one after another: `mann` for labels in a stream, `ftml` for whole tasks.
6. Before you believe any of them: `baseline-plus-plus` and the nearest neighbour of the inputs, which every evaluation
   prints.

Whether a prediction is transductive matters more than a percent of accuracy: a method that sees the queries of a task
together cannot be compared with one that does not, and needs whole batches of queries in use. `learner.norm` changes it
where a learner offers that.
"""
_TABLE = """
## All learners on one protocol

5-way 1-shot on Omniglot, {protocol}. Each learner has the best of its runs in [Results](results.md); all have trained
on one or two cores for the time shown. *Adaptation* is the CPU time of one thread to adapt to a task and to predict its
75 queries, and what that adds to the memory; *memory in training* is the peak of the whole process, with the images.
Both are measured with the settings of the run.
"""
_OTHERS = """
## Learners of other tasks

These have no figure on this protocol, or none yet.
"""


class Row(NamedTuple):
    """A learner in the table."""

    run: EvaluatedRun
    evaluation: Mapping[str, Any]
    score: Mapping[str, Any]


def best_runs() -> dict[str, Row]:
    """Return the run with the highest score of each learner, the best first; those of the small budget are left out."""
    found: dict[str, Row] = {}
    for folder in sorted(RECORDS.iterdir()):
        if not (folder / "evaluation").is_dir() or folder.name.startswith("small-"):
            continue
        run = read_run(folder)
        for evaluation in run.evaluations:
            if any(evaluation[name] != value for name, value in PROTOCOL.items()):
                continue
            row = Row(run, evaluation, headline_score(evaluation))
            learner = evaluation["learner"]
            if learner not in found or found[learner].score["mean"] < row.score["mean"]:
                found[learner] = row
    return dict(sorted(found.items(), key=lambda item: -item[1].score["mean"]))


def page() -> str:
    """Return the page."""
    words = {entry["learner"]: entry for entry in tomllib.loads(WORDS.read_text("utf-8"))["method"]}
    measured = json.loads(adaptation.FILE.read_text())["runs"] if adaptation.FILE.is_file() else {}
    rows = best_runs()
    lines = []
    for learner, row in rows.items():
        cost = measured.get(row.run.name, {})
        lines.append(
            [
                learner,
                words[learner]["family"],
                ", ".join(row.run.plugins) or "–",
                estimate_text(row.score, scale_of(row.evaluation)),
                "yes" if row.evaluation["transductive"] else "no",
                duration_text(row.run.status["seconds"]),
                f"{cost['milliseconds']:.3g} ms" if cost else "–",
                f"{cost['memory_mib']:.0f} MiB" if cost else "–",
                f"{cost['training_mib']:.0f} MiB" if cost else "–",
                f"{cost['parameters']:,}" if cost else "–",
                words[learner]["when"],
            ]
        )
    headings = ["learner", "family", "adapters, regularizers", "accuracy", "transductive", "training", "adaptation"]
    headings += ["its memory", "memory in training", "parameters", "when to choose it"]
    others = [[name, entry["family"], entry["when"]] for name, entry in words.items() if name not in rows]
    protocol = f"{PROTOCOL['tasks']:,} tasks of the {PROTOCOL['split']} split by alphabet".replace(",", ",")
    text = _INTRODUCTION + _TABLE.format(protocol=protocol) + "\n" + markdown_table(headings, lines)
    return text + "\n" + _OTHERS + "\n" + markdown_table(["learner", "family", "when to choose it"], others) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
