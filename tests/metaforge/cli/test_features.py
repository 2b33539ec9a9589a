"""`metaforge features`: the file that it writes is the data of another run, and bad flags."""

from __future__ import annotations

import json
from pathlib import Path

import metaforge
from fake_commands import run_command

SETTINGS = {"engine": {"threads": 1}, "evaluate": {"tasks": 4}, "backbone": {"filters": 4}}


def test_another_run_trains_on_the_features(tmp_path: Path) -> None:
    metaforge.train("protonet", dataset="glyphs", steps=1, settings=SETTINGS, out=tmp_path / "run")
    result = run_command(f"features {tmp_path}/run --out {tmp_path}/f.npz --json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["features"] == 4
    settings = {"dataset": {"name": "stored-features", "file": str(tmp_path / "f.npz")}, "evaluate": {"tasks": 4}}
    run = metaforge.train("leo", steps=1, settings=settings, out=tmp_path / "leo")
    assert run.resolved.backbone.name == "identity"
    assert run.spec().x_shape == (4, 1, 1)


def test_bad_flags(tmp_path: Path) -> None:
    for line, message in (
        ("features nowhere --out f.npz", "no run folder nowhere"),
        (f"features {tmp_path} --out f.pkl", "should end with .npz"),
        (f"features {tmp_path} --out f.npz --splits train,train", "should be different names"),
        (f"features {tmp_path} --out f.npz --checkpoint last", "should be latest, best or a step"),
    ):
        result = run_command(line)
        assert result.exit_code == 2, line
        assert message in " ".join(result.stderr.split()), line
