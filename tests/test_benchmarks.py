"""What the benchmarks compare is the same work: meta-gradients equal to those of other libraries, where they are."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from benchmarks.contestants import PEERS, Work, metaforge
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.timing import apart, furthest, shadows
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
def test_meta_gradients_are_those_of_others(name: str, peer: str, plan: str) -> None:
    if " " not in peer and find_spec(peer) is None:
        pytest.skip(f"needs {peer}: pip install 'metaforge[bench]'")
    theirs, ours = PEERS[peer](WORKS[name])(), metaforge(WORKS[name], plan=plan)()
    assert furthest(theirs, ours) < 1e-12
    assert apart(shadows(theirs), shadows(ours)) < 1e-12
    assert apart(shadows(theirs), shadows([2 * one for one in ours])) > 0.5


def test_episodes_of_prototypes_are_those_of_a_plain_loop() -> None:
    work = ProtoWork(ways=3, tasks=2, queries=2, dtype=torch.float64)
    assert furthest(plain_prototypes(work)(), metaforge_prototypes(work)()) < 1e-10
