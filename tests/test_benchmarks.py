"""The benchmarks compare equal work: MetaForge's meta-gradients equal those of a plain loop and of other libraries."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.contestants import PEERS, Work, metaforge
from benchmarks.performance_page import page_text
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.speed import CASES
from benchmarks.timing import projection_difference, projections, relative_difference, started_contestants
from metaforge.authoring.protocols import TaskShape

IMAGES = Work(
    "classification",
    (1, 28, 28),
    TaskShape(3, 1, 2),
    "conv4",
    {"variant": "stride", "filters": 4},
    tasks=2,
    steps=2,
    lr=0.1,
    dtype=torch.float64,
)
WORKS = {
    "curves": Work("regression", (1,), TaskShape(1, 5, 5), "mlp", {"widths": [8]}, 2, 3, 0.01, torch.float64),
    "images": IMAGES,
    "pooled": replace(IMAGES, options={"variant": "pool", "filters": 4}),
}


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", WORKS)
def test_meta_gradients_equal_those_of_the_peers(name: str, peer: str, plan: str) -> None:
    if " " not in peer and find_spec(peer) is None:
        pytest.skip(f"needs {peer}: pip install 'metaforge[bench]'")
    theirs, ours = PEERS[peer](WORKS[name])(), metaforge(WORKS[name], plan=plan)()
    assert relative_difference(theirs, ours) < 1e-12
    assert projection_difference(projections(theirs), projections(ours)) < 1e-12
    assert projection_difference(projections(theirs), projections([2 * value for value in ours])) > 0.5


def test_gradients_of_prototypes_equal_those_of_a_plain_loop() -> None:
    work = ProtoWork(ways=3, tasks=2, queries=2, dtype=torch.float64)
    assert relative_difference(plain_prototypes(work)(), metaforge_prototypes(work)()) < 1e-10


def test_a_contestant_process_reports_its_gradient_and_its_time() -> None:
    with started_contestants("sinusoid-1", ["a plain loop"]) as running:
        contestant = running["a plain loop"]
        expected = projections(PEERS["a plain loop"](CASES["sinusoid-1"].work)())
        assert projection_difference(expected, contestant.projections) < 1e-5
        assert 0 < contestant.turn() < 60


def test_the_performance_page_is_written_from_the_records() -> None:
    page = Path(__file__).parents[1] / "docs" / "performance.md"
    assert page.read_text("utf-8") == page_text(), "python -m benchmarks table"
