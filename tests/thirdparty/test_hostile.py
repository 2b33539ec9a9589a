"""A broken third-party plugin harms only the command that uses it, and that command reports what is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from prefixes import Prefix

VALID = "from metaforge_plugins.learners.metric.protonet import ProtoNet\n\nclass Mine(ProtoNet):\n    pass\n"
# Prints in every way that a process has; the learner after it is correct.
PRINTS = """
import os, subprocess, sys
print("LOUD")
sys.stdout.write("LOUD")
os.write(1, b"LOUD")
subprocess.run([sys.executable, "-S", "-c", "print('LOUD')"])
"""
OTHER_SIGNATURES = """
from metaforge.authoring.protocols import Learner, Options

class Mine(Learner):
    class Config(Options):
        pass

    def __init__(self, settings, parts): ...
    def init(self, generator): ...
    def adapt(self, values, examples): ...
    def predict(self, values, fast, x, *, key=None): ...
    def loss(self, values, task, key, weights): ...
"""
# For each plugin its source, and the message of `train --learner` and `list-plugins`; two plugins work and have none.
HOSTILE = {
    "raises": ("raise RuntimeError('boom\\nmore')", "cannot be loaded: RuntimeError: boom"),
    "exits": ("import sys\nsys.exit(0)", "cannot be loaded: SystemExit: 0"),
    "sleeps": (f"import os, time\ntime.sleep(float(os.environ.get('NAP', '5')))\n{VALID}", ""),
    "prints": (f"{PRINTS}\n{VALID}", ""),
    "lacks": ("import mf_nowhere", "cannot be loaded: ModuleNotFoundError: No module named 'mf_nowhere'"),
    "shapeless": ("class Mine: pass", "does not keep the contract of a learner: 'Config' is not a pydantic model"),
    "unlike": (OTHER_SIGNATURES, "init(self, generator) should begin (self, key)"),
    "newer": ("raise RuntimeError", "cannot be used: it requires metaforge>=99, this is metaforge"),
    "number": ("Mine = 3", "is not a class but of type int"),
}
# The tenth plugin claims names of built-in plugins, some of which are defaults.
TAKEN = {
    "learner": "maml", "adapter": "sgd", "backbone": "conv4", "dataset": "glyphs", "hook": "progress"
}  # fmt: skip
# The data set, the backbone and the adapter are the defaults; a small data set is generated quickly.
SMALL = [f"--set={setting}" for setting in ("dataset.train=9", "dataset.val=9", "dataset.test=9", "train.tasks=1")]
ANOTHER = ("train", "--learner", "fomaml", "--steps", "1", "--json", *SMALL)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    """Return a prefix in which all ten plugins are installed."""
    prefix = Prefix(tmp_path_factory.mktemp("hostile"))
    for name, (source, _) in HOSTILE.items():
        requires = "metaforge>=99" if name == "newer" else "metaforge>=0.1"
        prefix.put(f"mf-{name}", f"[metaforge.learners]\n{name} = mf_{name}:Mine\n", source, requires=requires)
    points = "\n".join(f"[metaforge.{kind}s]\n{name} = mf_taken:Mine" for kind, name in TAKEN.items())
    prefix.put("mf-taken", f"{points}\n[metaforge.defaults]\nclassification = mf_taken:Mine\n", "raise RuntimeError")
    return prefix


def rows(prefix: Prefix, *arguments: str, **variables: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of `list-plugins --json` by distribution and name."""
    process = prefix.run("list-plugins", "--json", *arguments, **variables)
    assert process.returncode == 0, process.stderr
    # An optimizer has the name of an adapter.
    listed = [row for row in json.loads(process.stdout) if row["kind"] != "optimizer"]
    return {(row["distribution"], row["name"]): row for row in listed}


@pytest.mark.parametrize(("command", "times"), [(("--help",), 3), (("list-plugins",), 3), (ANOTHER, 1)])
def test_other_commands_neither_import_them_nor_take_longer(
    hostile: Prefix, tmp_path: Any, command: tuple[str, ...], times: int
) -> None:
    alone = Prefix(tmp_path).cost(*command, times=times)
    beside = hostile.cost(*command, times=times)
    assert hostile.imported() == []
    # Processor time, because other load on the machine changes the wall time.
    assert beside < 1.5 * alone + 0.1


def test_the_list_shows_what_the_metadata_say(hostile: Prefix) -> None:
    listed = rows(hostile)
    for name in HOSTILE:
        row = listed[f"mf-{name}", name]
        assert (row["state"], row["version"]) == ("incompatible" if name == "newer" else "ready", "1.2")
    for kind, name in TAKEN.items():
        for distribution in ("metaforge", "mf-taken"):
            assert listed[distribution, name]["state"] == "ambiguous"
            assert listed[distribution, name]["kind"] == kind
            assert f"use '{distribution}:{name}'" in listed[distribution, name]["reason"]
    table = hostile.run("list-plugins").stdout
    assert "it requires metaforge>=99" in table
    assert hostile.imported() == []


def test_loading_reports_the_time_and_the_error_of_each(hostile: Prefix) -> None:
    listed = rows(hostile, "--load", "--kind", "learner", NAP="0.2")
    assert set(hostile.imported()) == {f"mf_{name}" for name in (*HOSTILE, "taken") if name != "newer"}
    for name, (_, message) in HOSTILE.items():
        row = listed[f"mf-{name}", name]
        if name == "newer":
            assert (row["state"], row["seconds"]) == ("incompatible", None)
            continue
        assert row["state"] == ("broken" if message else "ready"), row
        assert message in row["reason"]
        assert row["seconds"] >= (0.2 if name == "sleeps" else 0)
    assert listed["mf-taken", "maml"]["state"] == "broken"
    assert listed["metaforge", "maml"]["state"] == "ambiguous"
    table = hostile.run("list-plugins", "--load", "--kind", "learner", NAP="0.2")
    assert table.returncode == 0
    assert "LOUD" not in table.stdout
    assert "cannot be loaded: SystemExit: 0" in table.stdout
    assert re.search(r"\b7 of \d+ plugins are broken", table.stderr)


@pytest.mark.parametrize("name", [name for name, (_, message) in HOSTILE.items() if message])
def test_a_command_that_uses_one_reports_it_in_one_message(hostile: Prefix, name: str) -> None:
    process = hostile.run("train", "--learner", name, "--json")
    assert (process.returncode, process.stdout) == (4, "")
    what, where, remedy = process.stderr.splitlines()
    assert what.startswith(f"Error: The learner '{name}' of mf-{name} 1.2 ")
    assert HOSTILE[name][1] in what
    assert where == f"  where: mf_{name}:Mine"
    assert remedy.startswith("  remedy: ")
    assert "\n".join(process.stderr.splitlines()) == process.stderr.strip()


def test_the_traceback_is_shown_in_debug_mode(hostile: Prefix) -> None:
    process = hostile.run("train", "--learner", "raises", METAFORGE_DEBUG="1")
    assert process.returncode == 4
    assert "raise RuntimeError('boom" in process.stderr
    assert "mf_raises.py" in process.stderr


def test_a_plugin_that_prints_does_not_change_stdout(hostile: Prefix) -> None:
    process = hostile.run("config", "--learner", "prints", "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["values"]["learner"]["name"] == "prints"
    assert process.stderr.count("LOUD") == 4


def test_a_taken_name_is_ambiguous_and_both_can_be_chosen(hostile: Prefix) -> None:
    bare = hostile.run("config", "--learner", "maml")
    assert bare.returncode == 4
    assert "use one of 'metaforge:maml', 'mf-taken:maml'" in bare.stderr
    ours = hostile.run("config", "--learner", "metaforge:maml", "--json")
    assert ours.returncode == 0, ours.stderr
    values = json.loads(ours.stdout)["values"]
    assert values["learner"]["name"] == "metaforge:maml"
    # Defaults are MetaForge's own plugins, even if another distribution has the same names.
    assert values["dataset"]["name"] == "metaforge:glyphs"
    assert values["backbone"]["name"] == "metaforge:conv4"
    assert list(values["adapters"]) == ["metaforge:sgd"]
    theirs = hostile.run("config", "--learner", "mf-taken:maml")
    assert theirs.returncode == 4
    assert "The learner 'maml' of mf-taken 1.2 cannot be loaded: RuntimeError" in theirs.stderr


def test_third_party_plugins_can_be_hidden(hostile: Prefix) -> None:
    listed = rows(hostile, METAFORGE_PLUGINS="none")
    assert {row["state"] for (distribution, _), row in listed.items() if distribution == "metaforge"} == {"ready"}
    assert {row["state"] for (distribution, _), row in listed.items() if distribution != "metaforge"} == {"hidden"}
    some = hostile.run("list-plugins", METAFORGE_PLUGINS="mf-prints, mf-absent")
    assert some.returncode == 0
    assert "METAFORGE_PLUGINS names 'mf-absent', but no installed distribution" in some.stderr


def test_damaged_metadata_of_others_do_not_break_the_list(tmp_path: Any) -> None:
    prefix = Prefix(tmp_path)
    prefix.put("mf-sign", "[metaforge.learners]\nno sign of equality\n")
    prefix.put("mf-nameless", "[metaforge.learners]\nx = mf_nameless:Mine\n", metadata="Version: 1\n")
    prefix.put("mf-bytes", "[metaforge.learners]\nx = mf_bytes:Mine\n")
    (tmp_path / "mf_bytes-1.2.dist-info" / "METADATA").write_bytes(b"Name: mf-bytes\nVersion: \xff\xfe\n")
    prefix.put("mf-gone", "[metaforge.learners]\nx = mf_gone:Mine\n")
    (tmp_path / "mf_gone-1.2.dist-info" / "METADATA").unlink()
    prefix.put("mf-sound", "[metaforge.learners]\nsound = mf_sound:Mine\n", VALID)
    process = prefix.run("list-plugins", "--kind", "learner")
    assert process.returncode == 0, process.stderr
    assert "mf-sound 1.2" in process.stdout
    assert "maml" in process.stdout
    # The two distributions without a name share one note.
    assert process.stderr.count("Note: The metadata of ") == 3
    assert "'mf-sign'" in process.stderr
    assert "a distribution without a name" in process.stderr
