"""The row about untrusted run folders that try to run code, to write elsewhere, or to crash the program."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from tests.reliability import children, small_runs
from tests.reliability.rows import Measured, Workspace, row

_STEP = "step-0000004"
# A pickle that runs `touch` when it is loaded, and so creates the canary file.
_PICKLE = b"cos\nsystem\n(S'touch {canary}'\ntR."


def _rewritten(ckpt: Path, name: str, data: bytes) -> None:
    """Replace a file and update the manifest, as an attacker can."""
    manifest = json.loads((ckpt / "MANIFEST.json").read_text("utf-8"))
    manifest[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (ckpt / name).write_bytes(data)
    (ckpt / "MANIFEST.json").write_text(json.dumps(manifest), "utf-8")


def _state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """Return a case that changes `state.json`."""

    def case(run: Path, canary: Path) -> None:
        content = json.loads((run / "ckpt" / _STEP / "state.json").read_text("utf-8"))
        change(content)
        _rewritten(run / "ckpt" / _STEP, "state.json", json.dumps(content).replace("CANARY", str(canary)).encode())

    return case


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Path], None]:
    """Return a case that changes the tensors of a file."""

    def case(run: Path, canary: Path) -> None:
        content = load((run / "ckpt" / _STEP / name).read_bytes())
        change(content)
        _rewritten(run / "ckpt" / _STEP, name, save(content))

    return case


def _raw(name: str, change: Callable[[bytes, Path], bytes]) -> Callable[[Path, Path], None]:
    """Return a case that replaces a file's bytes."""

    def case(run: Path, canary: Path) -> None:
        _rewritten(run / "ckpt" / _STEP, name, change((run / "ckpt" / _STEP / name).read_bytes(), canary))

    return case


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    """Return a case that changes the manifest."""

    def case(run: Path, canary: Path) -> None:
        path = run / "ckpt" / _STEP / "MANIFEST.json"
        path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), "utf-8")

    return case


def _sized(name: str, size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that changes the size of a file in a manifest."""
    return lambda manifest: manifest | {name: manifest[name] | {"size": size}}


def _config(before: str, after: str) -> Callable[[Path, Path], None]:
    """Return a case that changes `config.toml`."""

    def case(run: Path, canary: Path) -> None:
        text = (run / "config.toml").read_text("utf-8")
        if before not in text:
            raise RuntimeError(f"config.toml lacks {before!r}")
        (run / "config.toml").write_text(text.replace(before, after.replace("CANARY", str(canary)), 1), "utf-8")

    return case


def _linked(*parts: str, folder: bool = False) -> Callable[[Path, Path], None]:
    """Return a case where a file or a folder of the run is a symbolic link to a file or folder of the user."""

    def case(run: Path, canary: Path) -> None:
        there = run.joinpath(*parts)
        precious = canary.with_name("precious")
        if there.is_dir():
            shutil.rmtree(there)
        there.unlink(missing_ok=True)
        there.symlink_to(precious if folder else precious / "file.txt")

    return case


def _file(name: str, data: bytes) -> Callable[[Path, Path], object]:
    """Return a case where a file of the run folder, outside the checkpoints, has other contents."""
    return lambda run, canary: (run / name).write_bytes(data)


def _pipe(name: str) -> Callable[[Path, Path], object]:
    """Return a case where a file of the run folder is a named pipe without a writer: opening it would block."""

    def case(run: Path, canary: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return case


def _header(text: str) -> Callable[[bytes, Path], bytes]:
    """Return a function that makes a safetensors file of this header and 64 zero bytes."""
    return lambda data, canary: struct.pack("<Q", len(text)) + text.encode() + bytes(64)


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in tensors.items() if value.dim())


_LONG = "9" * 5000
_TWICE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_HUGE = '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}}'
_OVERLAP = '{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,9999]}}'

# Each case with its expected exit codes: 5 for an invalid checkpoint, 2 or 4 for an invalid `config.toml`.
CASES: Mapping[str, tuple[Callable[[Path, Path], object], tuple[int, ...]]] = {
    "pickle as model.safetensors": (_raw("model.safetensors", lambda d, c: _pickled(c)), (5,)),
    "pickle as train.safetensors": (_raw("train.safetensors", lambda d, c: _pickled(c)), (5,)),
    "pickle as state.json": (_raw("state.json", lambda d, c: _pickled(c)), (5,)),
    "zip of torch.save as model.safetensors": (
        _raw("model.safetensors", lambda d, c: b"PK\x03\x04" + _pickled(c)),
        (5,),
    ),
    "header of 1 TB": (_raw("model.safetensors", lambda d, c: struct.pack("<Q", 1 << 40) + b"{}"), (5,)),
    "header of 150 MB": (_raw("model.safetensors", lambda d, c: _header("{" + " " * (150 << 20) + "}")(d, c)), (5,)),
    "header with a duplicate name": (_raw("model.safetensors", _header(_TWICE)), (5,)),
    "tensor of 16 EB": (_raw("model.safetensors", _header(_HUGE)), (5,)),
    "tensor beyond the file": (_raw("model.safetensors", _header(_OVERLAP)), (5,)),
    "values of another shape": (_tensors("model.safetensors", lambda t: t.update({_first(t): torch.zeros(3)})), (5,)),
    "an additional value": (_tensors("model.safetensors", lambda t: t.update({"os.system": torch.zeros(3)})), (5,)),
    "a missing value": (_tensors("model.safetensors", lambda t: t.pop(_first(t))), (5,)),
    "values that are NaN": (
        _tensors("model.safetensors", lambda t: t[_first(t)].fill_(torch.nan)),
        (5,),
    ),
    "values of an integer type": (
        _tensors("model.safetensors", lambda t: t.update({_first(t): t[_first(t)].long()})),
        (5,),
    ),
    "optimiser state of another shape": (
        _tensors("train.safetensors", lambda t: t.update({_first(t): torch.zeros(3)})),
        (5,),
    ),
    "optimiser state missing": (_tensors("train.safetensors", lambda t: t.pop(_first(t))), (5,)),
    "optimiser state of an unknown parameter": (
        _tensors("train.safetensors", lambda t: t.update({"x.y": torch.zeros(3)})),
        (5,),
    ),
    "optimiser state of an integer type": (
        _tensors("train.safetensors", lambda t: t.update({_first(t): t[_first(t)].long()})),
        (5,),
    ),
    "dotted class names in state.json": (
        _state(lambda s: s.update({"hooks": {"early-stop": "os.system", "_target_": "os.system('touch CANARY')"}})),
        (5,),
    ),
    "a hook's state of another type": (_state(lambda s: s.update({"hooks": {"early-stop": {"best": "x"}}})), (4, 5)),
    "environment of another type": (_state(lambda s: s.update({"environment": ["os.system"]})), (5,)),
    "plugins of another type": (_state(lambda s: s["environment"].update({"plugins": ["os:system"]})), (5,)),
    "settings of another type": (_state(lambda s: s.update({"config": 7})), (5,)),
    "another plugin": (
        _state(lambda s: s["environment"].update({"plugins": {"learner maml": "evil; touch CANARY 6.6"}})),
        (4,),
    ),
    "a step that is a boolean": (_state(lambda s: s.update({"step": True})), (5,)),
    "a step that is huge": (
        _raw("state.json", lambda d, c: d.replace(b'"step": 4', b'"step": ' + _LONG.encode())),
        (5,),
    ),
    "norms that are NaN": (_state(lambda s: s.update({"norms": [float("nan")] * 50})), (5,)),
    "seconds that are infinite": (_state(lambda s: s.update({"seconds": float("inf")})), (5,)),
    "metrics of another type": (_state(lambda s: s.update({"window": {"loss": "x"}})), (5,)),
    "a duplicate name in state.json": (_raw("state.json", lambda d, c: d.replace(b"{", b'{"step": 9, ', 1)), (5,)),
    "JSON nested 200,000 deep": (_raw("state.json", lambda d, c: b"[" * 200_000), (5,)),
    "a newer schema": (_state(lambda s: s.update({"schema": 99})), (5,)),
    "manifest with ../": (_manifest(lambda m: m | {"../../../precious/file.txt": m["state.json"]}), (5,)),
    "manifest with an absolute path": (_manifest(lambda m: m | {"/etc/passwd": m["state.json"]}), (5,)),
    "manifest with a size of 1 EB": (_manifest(lambda m: m | {"state.json": {"size": 1 << 60, "sha256": ""}}), (5,)),
    "manifest with a size of 1 EB for tensors": (_manifest(_sized("model.safetensors", 1 << 60)), (5,)),
    "manifest with a size of 10^30 for tensors": (_manifest(_sized("train.safetensors", 10**30)), (5,)),
    "manifest that is a list": (_manifest(lambda m: [m]), (5,)),
    "checkpoint that is a symbolic link": (_linked("ckpt", _STEP, folder=True), (2,)),
    "ckpt that is a symbolic link": (_linked("ckpt", folder=True), (2,)),
    "model.safetensors that is a symbolic link": (_linked("ckpt", _STEP, "model.safetensors"), (2,)),
    "run.lock that is a symbolic link": (_linked("run.lock"), (2,)),
    "metrics.jsonl that is a symbolic link": (_linked("metrics.jsonl"), (2,)),
    "pictures that is a symbolic link": (_linked("pictures", folder=True), (2,)),
    "config.toml with _target_": (_config("[train]", '[train]\n_target_ = "os.system"\nargs = "touch CANARY"'), (2,)),
    "config.toml with a module as a backbone": (_config('name = "mlp"', 'name = "os:system"'), (2, 4)),
    "config.toml with a learner by its path": (
        _config('name = "maml"', 'name = "metaforge.runs.folder:subprocess"'),
        (2, 4),
    ),
    "config.toml with a hook's file elsewhere": (
        _config("[hooks.jsonl]", '[hooks.jsonl]\nfile = "../precious/file.txt"'),
        (2,),
    ),
    "config.toml that is a table too deep": (_config("[train]", "[train" + ".a" * 20_000 + "]"), (2,)),
    **{
        f"{name} nested 100,000 deep": (_file(name, b"[" * 100_000), (0, 2, 3))
        for name in ("status.json", "metrics.jsonl", "run.lock", "env.json")
    },
    **{f"{name} that is a named pipe": (_pipe(name), (2,)) for name in ("metrics.jsonl", "run.lock", "status.json")},
    "status.json of other types": (_file("status.json", b'{"steps": "x", "seconds": [1], "skipped": 3}'), (0,)),
    "status.json with an integer of 400 digits": (_file("status.json", b'{"seconds": 1%s}' % (b"0" * 399)), (0, 3)),
    "metrics.jsonl of other types": (
        _file("metrics.jsonl", b'{"step": "x", "loss": [1], "val_score_ci": "y"}\n'),
        (0,),
    ),
    "metrics.jsonl with values of other types": (
        _file("metrics.jsonl", b'{"step": 1, "loss": [1], "score": "x", "val_score": 1, "val_score_ci": -1}\n'),
        (0,),
    ),
    "metrics.jsonl with an integer of 400 digits": (
        _file("metrics.jsonl", b'{"step": 1, "loss": 1%s}\n' % (b"0" * 399)),
        (0, 3),
    ),
    "metrics.jsonl with numbers of 9e299": (
        _file("metrics.jsonl", b'{"step": 1, "loss": 9e299, "val_score": -9e299}\n{"step": 2, "loss": 1}\n'),
        (0,),
    ),
    "run.lock with a holder of other types": (_file("run.lock", b'{"pid": [], "host": {}, "since": 1e400}'), (0, 7)),
    "env.json that is a list": (lambda run, canary: (run / "env.json").write_text("[]"), (2, 3)),
    "metrics.jsonl of another type": (lambda run, canary: (run / "metrics.jsonl").write_text("[1]\n"), (0,)),
}


def _pickled(canary: Path) -> bytes:
    return _PICKLE.replace(b"{canary}", os.fsencode(canary))


@row(
    18,
    "untrusted run folders: pickles, class names, paths, symbolic links, headers, shapes, settings",
    goal="at least 20 cases: no code runs, files elsewhere are unchanged, exit code 5 (2 or 4 if another file is"
    " invalid), no traceback",
)
def malicious(workspace: Workspace, *, cases: tuple[str, ...] = (*CASES,)) -> Measured:
    """Resume, evaluate and verify hostile runs, each with one checkpoint."""
    file = small_runs.write_run_file(workspace.folder / "run.toml", small_runs.settings("maml", steps=4))
    first = workspace.folder / "first"
    children.run_successfully(["train", "--config", str(file), "--out", str(first)], workspace.folder / "output.txt")
    for path in (first / "ckpt").glob("step-*"):
        if path.name != _STEP:
            shutil.rmtree(path)
    failures, done = [], 0
    for index in workspace.indices(len(cases)):
        failures += _attacked(workspace, first, cases[index])
        done += 1
    failed = {failure.partition(":")[0] for failure in failures}
    text = f"{done - len(failed)} of {len(cases)} refused as expected; no code has run"
    return Measured(done == len(cases) and not failures, text, {"cases": list(cases), "wrong": failures})


def _attacked(workspace: Workspace, first: Path, name: str) -> list[str]:
    """Return what is wrong with how the commands that read a run handle a case."""
    change, codes = CASES[name]
    run, canary, precious = workspace.folder / "run", workspace.folder / "canary", workspace.folder / "precious"
    failures = []
    for arguments in (["train", "--no-progress", "--resume"], ["evaluate", "--no-progress"], ["ckpt", "verify"]):
        for path in (run, precious):
            shutil.rmtree(path, ignore_errors=True)
        precious.mkdir()
        (precious / "file.txt").write_text("precious")
        (precious / ".x.part").write_text("precious")
        shutil.copytree(first, run)
        change(run, canary)
        code, output = children.run_command([*arguments, str(run)], workspace.folder / "output.txt")
        precious_files = {path.name: path.read_text() for path in precious.iterdir()}
        # Commands other than `train` may succeed where only the resumed training reads the changed file.
        expected = code in codes or (code in (0, *codes) and arguments[0] != "train")
        if (
            canary.exists()
            or precious_files != {"file.txt": "precious", ".x.part": "precious"}
            or "Traceback" in output
            or not expected
        ):
            failures.append(f"{name}: {arguments[0]}: exit code {code}, {sorted(precious_files)}: {output[-300:]}")
            canary.unlink(missing_ok=True)
    return failures
