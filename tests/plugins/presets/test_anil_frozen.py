"""ANIL on a frozen body: the initial head alone is trained."""

from __future__ import annotations

from pathlib import Path

from preset_runs import changed, initial, trained


def test_only_the_initial_head_is_trained(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "anil", "anil-frozen")
    assert changed(run.values, initial(run)) == {"model.2.weight", "model.2.bias"}
