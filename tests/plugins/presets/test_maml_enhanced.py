"""MAML with a learned curvature and learned rates."""

from __future__ import annotations

from pathlib import Path

from preset_runs import changed, initial, trained


def test_matrices_and_rates_are_trained(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "maml", "maml-enhanced")
    moved = {name for name in changed(run.values, initial(run)) if name.startswith("adapters.")}
    assert [name for name in moved if "meta-curvature" in name]
    assert [name for name in moved if "lslr" in name]
