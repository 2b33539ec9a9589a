"""The records of the speed benchmarks as JSON, and `docs/performance.md`, which is written from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import speed
from metaforge.system import machine

RECORDS = Path(__file__).with_name("records") / "performance"
PAGE = Path("docs/performance.md")

_INTRODUCTION = """# Performance

`python -m benchmarks` measures the numbers of this page and writes it; do not edit it. Words such as *plan*, *eager*
and *compiled* are explained in the [glossary](glossary.md).

In each case all contestants do the same work: the same tasks, from the same initial weights. Their gradients are
compared first. Each contestant runs in its own process, they are timed in turns, and a time is the median over the
rounds. Ratios can be compared between machines, times cannot. Other libraries are used as their documentation shows,
in a loop over tasks. What MetaForge sets when it starts (thresholds of the memory allocator) is set for MetaForge only.
"""
_SECTIONS: Mapping[str, tuple[str, str]] = {
    "speed": (
        "Compared with other libraries",
        "`MetaForge` is an eager step with the plan that MetaForge chooses. Speeds are relative to the fastest other"
        " contestant, and so is the goal that is set for MetaForge. The difference of the gradient is relative to that"
        " of the first row. It is measured along eight random directions in float32, and in float64 as the norm of the"
        " whole difference on two tasks.",
    ),
    "learners": (
        "Each learner beside a plain loop",
        "Every learner beside a loop over tasks in plain PyTorch with the same gradients: `conv4` with strides, 5-way"
        " 1-shot with 5 queries, and curves with 10 shots and 10 queries, by `mlp` 1-40-40-1 or by the networks of a"
        " neural process. `mann`, `ntm` and `in-context` read streams of 15 images, which are 2 queries per class;"
        " `relation` has the variant of `conv4` whose features are maps; pretraining (`fine-tune`, `simpleshot` and the"
        " baselines) is one batch of 60 classes. Options are those with which a run of the learner begins, but"
        " `reptile` takes its steps on all examples and, on images, with a larger ε in Adam; `meta-lstm` normalises"
        " queries by their own statistics, with 16 filters, as is suggested; and on curves neural processes and"
        " `in-context` read the whole support set. Both sides of `metaopt-svm` solve the quadratic program by the same"
        " function, because torch has none. Where a learner draws random numbers, the loop gets the same ones, drawn"
        " before it is timed. `MetaForge` is an eager step with the plan that MetaForge chooses. Speeds are relative to"
        " the plain loop. The goal is that of the compiled step; that of the eager step is 1. The difference is the"
        " largest one of gradients in float64, on two tasks. Left out are `ftml`, whose gradient is that of `maml`,"
        " `leo`, which draws random numbers in each inner step, and `fine-tune` on curves, which trains on all tasks as"
        " one batch.",
    ),
    "limit": (
        "Compared with the limits of the machine",
        "A limit is the highest rate that this machine reaches in one kind of operation.",
    ),
    "data": ("Episodes", "How many episodes per second the data sets sample."),
    "scale": ("Size and processes", "How time and memory grow with one size, the others being constant."),
}
# Names of columns in the records, and their headings.
_HEADINGS: Mapping[str, str] = {
    "who": "implementation",
    "ms": "ms per step",
    "ms a step": "ms per step",
    "goal": "goal",
    "gradient differs": "difference of the gradient",
    "in float64": "in float64",
    "MetaForge": "speed of MetaForge",
    "compiled": "speed compiled",
    "first step, s": "first step, s",
    "what": "operation",
    "reached": "share of the limit",
    "tasks/s at the ceiling": "tasks/s at the limit",
    "peak MiB of a process": "peak MiB per process",
    "times 1 process": "speed relative to 1 process",
    "steps": "inner steps",
    "tasks": "tasks per batch",
}
_TITLES: Mapping[str, str] = {
    **{f"speed-{name}": case.title for name, case in speed.CASES.items()},
    "limit-ceilings": "Limits",
    "limit-reached": "Share of the limit of convolutions",
}
# What is known about a case: where the time goes (found with torch's profiler), and what was tried.
_NOTES: Mapping[str, Sequence[str]] = {
    "speed-sinusoid-5": (
        "Compiled, 60 % of the time is spent in 42 batched products of 25 matrices of at most 40 x 40, and 10 % in the"
        " Python between them. Five of these products have a transposed result; they took six times as long as the"
        " others until they were rewritten as products of the transposed factors. Three attempts brought no gain:"
        " matrix products generated by Inductor, products written as sums that Inductor fuses, and Inductor's C++"
        " wrapper, which fails on this step. With two threads the step would be 25 % faster on an idle machine, but"
        " many times slower next to another busy program, so `auto` chooses one thread.",
    ),
    "speed-stride": (
        "Compiled, two thirds of the time are spent in convolutions, which reach 60 % of their limit; the rest are"
        " passes of batch norm and ReLU over the activations. In an eager step, torch's backward pass of a strided"
        " convolution runs at half of the speed that it has in channels-last memory format. Eager channels-last"
        " convolutions were nevertheless slower, because calls of custom autograd functions have a cost.",
    ),
    "speed-pool-16": (
        "A first step of a minute or more includes the time in which the operating system of this machine provides"
        " memory that no program has used before. The contestant that is the first to need it pays for it.",
    ),
    "speed-pool-4": (
        "Compiled, half of the time is spent in convolutions. The backward pass of Inductor's max pooling alone took"
        " 145 of 720 ms of one thread; MetaForge's own kernel for it takes 5 ms.",
    ),
    "limit-reached": (
        "The number of operations is that of the convolutions and matrix products of the plain loop, counted by torch.",
    ),
    "scale-processes": (
        "Goal: two processes of one thread each are at least 1.7 times as fast as one.",
        "The last row shows what the second core of this machine can give: two independent runs, their tasks per"
        " second added.",
    ),
}


def write_record(kind: str, name: str, record: Mapping[str, Any]) -> None:
    """Write the record of a case, with the facts about the machine."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{kind}-{name}.json"
    path.write_text(json.dumps({"name": name, "machine": machine.facts(), **record}, indent=1) + "\n", "utf-8")


def write_page() -> None:
    """Write the page from all records."""
    PAGE.write_text(page_text(), "utf-8")


def page_text() -> str:
    """Return the page: an introduction, and a section for each kind of benchmark."""
    parts = [_INTRODUCTION]
    for kind, (heading, explanation) in _SECTIONS.items():
        paths = sorted(RECORDS.glob(f"{kind}-*.json"))
        records = {path.stem: json.loads(path.read_text("utf-8")) for path in paths}
        if not records:
            continue
        facts = next(iter(records.values()))["machine"]
        parts += [f"## {heading}\n", f"{explanation}\n"]
        parts.append(
            f"Command: `python -m benchmarks {kind}`. Machine: {facts['processor']}, torch {facts['torch']}.\n"
        )
        if kind == "learners":
            parts.append(_table([_learner_row(record) for record in records.values()]))
            continue
        for stem, record in records.items():
            parts += [f"### {_TITLES.get(stem, record['title'])}\n", _table(record["rows"])]
            parts += [f"{note}\n" for note in _notes(stem, record)]
    return "\n".join(parts)


def _notes(stem: str, record: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs below a table."""
    if "seconds" not in record:
        return list(_NOTES.get(stem, record.get("notes", ())))
    rounds = len(next(iter(record["seconds"].values())))
    (fastest,) = (name.removeprefix("times ") for name in record["rows"][0] if name.startswith("times "))
    return [f"Medians of {rounds} rounds. The fastest other contestant is {fastest}.", *_NOTES.get(stem, ())]


def _learner_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the only row of a learner on a network."""
    by_name = {row["who"]: row for row in record["rows"]}
    plain, ours = by_name["a plain loop"], by_name["MetaForge"]
    compiled = by_name.get("MetaForge compiled", {})
    differences = [float(row["in float64"]) for row in by_name.values() if row["in float64"]]
    return {
        **{name: record[name] for name in ("method", "network", "tasks", "steps")},
        "plain loop, ms": plain["ms"],
        "MetaForge": ours["times a plain loop"],
        "compiled": compiled.get("times a plain loop"),
        "goal": compiled.get("goal", ours["goal"]),
        "in float64": f"{max(differences):.0e}",
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    lines = [[_heading(name) for name in names], ["---"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _heading(name: str) -> str:
    """Return the heading of a column; the column `times X` holds the speed relative to the contestant X."""
    relative = f"speed relative to {name.removeprefix('times ')}" if name.startswith("times ") else name
    return _HEADINGS.get(name, relative)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
