"""ANIL with a body from another run, of which only batch norm is trained further."""

from __future__ import annotations

from pathlib import Path

from preset_runs import changed, trained


def test_convolutions_stay_and_batch_norm_is_trained(tmp_path: Path) -> None:
    before = trained(tmp_path / "pretrained", "protonet").values
    run = trained(tmp_path / "run", "anil", "anil-pretrained-frozen", init_from=tmp_path / "pretrained")
    start = {name.replace("model.", "model.0.", 1): value for name, value in before.items()}
    moved = changed(run.values, start)
    assert not [name for name in moved if ".conv." in name]
    assert {f"model.0.{block}.norm.{part}" for block in range(4) for part in ("weight", "bias")} <= moved
    assert "state.model.0.0.norm.mean" in moved
