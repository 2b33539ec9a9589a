"""ANIL with a body from another run, which is trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metaforge.errors import ConfigError
from preset_runs import changed, trained


@pytest.mark.parametrize(
    ("learner", "body", "more"),
    [("protonet", "model.", {}), ("maml", "model.0.", {"init_patterns": ["model.0.*"]})],
)
def test_the_body_of_a_network_with_or_without_a_head_is_taken_over_and_trained(
    learner: str, body: str, more: dict[str, Any], tmp_path: Path
) -> None:
    before = trained(tmp_path / "pretrained", learner).values
    run = trained(tmp_path / "run", "anil", "anil-pretrained", init_from=tmp_path / "pretrained", **more)
    start = {name.replace(body, "model.0.", 1): value for name, value in before.items() if name.startswith(body)}
    facts = json.loads((tmp_path / "run" / "env.json").read_text())["init_from"]
    taken = set(facts["taken"])
    # The suggested network of prototypical networks has pooling, so the values fit, but the features are others.
    assert facts["backbone"] == ([] if more else ["backbone.variant is pool there and stride here"])
    assert len(start) == 16
    assert start.keys() <= taken
    assert {name for name in start if name.endswith(("conv.weight", "norm.weight"))} <= changed(run.values, start)


def test_without_the_other_run_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"runs/pretrained"):
        trained(tmp_path / "run", "anil", "anil-pretrained")
    assert not (tmp_path / "run").exists()
