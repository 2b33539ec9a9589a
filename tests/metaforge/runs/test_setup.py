"""What a training is set up with: the folder and the hooks are those of rank 0 alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaforge import hookimpl
from metaforge.authoring import RunInfo
from metaforge.authoring.kinds import REGRESSION
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.sources import Layer
from metaforge.engine.processes import World
from metaforge.errors import ConfigError, StorageError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.setup import set_up
from quick_runs import trained


class Started:
    """A hook object that does nothing."""

    @hookimpl
    def metaforge_run_start(self) -> None: ...


def configuration() -> Resolved:
    values = {"learner": "maml", "dataset": "sinusoid", "hooks": ["jsonl"], "engine": {"threads": 1}}
    return resolve([Layer("test", values)], scan())


def test_rank_0_creates_the_folder_and_calls_the_hooks(tmp_path: Path) -> None:
    resolved = configuration()
    setup = set_up(resolved, tmp_path / "run", "a command", [Started()], World())
    assert setup.folder is not None
    setup.folder.close()
    assert (tmp_path / "run" / "config.toml").read_text("utf-8") == resolved.to_toml()
    assert (tmp_path / "run" / "command.txt").read_text("utf-8") == "a command\n"
    # The object given, the hook of the configuration, and the learner, which has a hook too.
    assert len(setup.hooks.get_plugins()) == 3
    assert list(setup.plugins) == ["jsonl"]
    assert (setup.info.folder, setup.info.kind, setup.info.command) == (tmp_path / "run", REGRESSION, "a command")
    assert setup.info.settings == resolved.to_dict()


def test_other_ranks_have_neither_folder_nor_hooks(tmp_path: Path) -> None:
    setup = set_up(configuration(), tmp_path / "run", "", [Started()], World(rank=1, size=2))
    assert setup.folder is None
    assert setup.plugins == {}
    assert setup.hooks.get_plugins() == set()
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_hooks_of_no_folder(tmp_path: Path) -> None:
    setup = set_up(configuration(), tmp_path / "run", "", [], World(), dry=True)
    assert setup.folder is not None
    setup.folder.close()
    assert setup.info.folder is None
    assert setup.dry


def test_only_a_run_that_resumes_may_use_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        set_up(configuration(), tmp_path, "", [], World(), resuming=True)
    (tmp_path / "run" / "mine").mkdir(parents=True)
    with pytest.raises(StorageError, match="already exists"):
        set_up(configuration(), tmp_path / "run", "", [], World())


def test_a_hook_that_changes_its_settings_changes_no_checkpoint(tmp_path: Path) -> None:
    class Meddler:
        @hookimpl
        def metaforge_run_start(self, run: RunInfo) -> None:
            run.settings["train"]["lr"] = 123.0

    trained(tmp_path / "run", hooks=[Meddler()])
    saved, _ = checkpoint.load_latest(tmp_path / "run" / "ckpt")
    assert saved.facts["config"]["train"]["lr"] != 123.0
