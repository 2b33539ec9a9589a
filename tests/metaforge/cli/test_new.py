"""`metaforge new`: what a name may be, and what is written where; tests/thirdparty installs and trains the results."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaforge.cli.app import app
from metaforge.cli.new import project
from metaforge.errors import ConfigError
from metaforge.registry.entry import KINDS, Entry
from metaforge.registry.registry import Registry

runner = CliRunner()
TAKEN = Registry([Entry("hook", "My_Lion", "zoo:Lion", "zoo", "1.0", state="hidden", reason="it sleeps")])


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_its_files_and_leaves_no_blank_to_fill_in(kind: str, tmp_path: Path) -> None:
    made = project(kind, "my-idea", tmp_path, TAKEN)
    assert made.folder == tmp_path / "metaforge-my-idea"
    assert not made.folder.exists()
    made.write()
    found = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}
    source = "src/metaforge_my_idea/__init__.py"
    assert found == {"pyproject.toml", "README.md", source, "src/metaforge_my_idea/py.typed", "tests/test_my_idea.py"}
    settings = tomllib.loads((made.folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert settings["entry-points"] == {f"metaforge.{kind}s": {"my-idea": "metaforge_my_idea:MyIdea"}}
    assert "class MyIdea(" in (made.folder / source).read_text("utf-8")
    assert f'["{kind}:my-idea"]' in (made.folder / "tests/test_my_idea.py").read_text("utf-8")
    assert "$" not in "".join(text for name, text in made.files.items() if not (kind == "hook" and name == source))
    assert made.commands[1] == "metaforge check my-idea"
    assert "my-idea" in made.commands[2]


@pytest.mark.parametrize(
    ("running", "specifier"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3", ">=0.9,<0.10"), ("1.4.2", ">=1.4,<2"), ("2.0.0.dev1", ">=2.0,<3")],
)
def test_a_plugin_asks_for_the_versions_that_it_was_written_for(
    running: str, specifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaforge.cli.new.__version__", running)
    text = project("learner", "my-idea", tmp_path, TAKEN).files["pyproject.toml"]
    assert tomllib.loads(text)["project"]["dependencies"] == [f"metaforge{specifier}"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "cannot be the name"),
        ("My-Idea", "cannot be the name"),
        ("my_idea", "cannot be the name"),
        ("my--idea", "cannot be the name"),
        ("my-idea-", "cannot be the name"),
        ("my-idea\n", "cannot be the name"),
        ("../idea", "cannot be the name"),
        ("1idea", "cannot be the name"),
        ("ä", "cannot be the name"),
        ("a" * 41, "cannot be the name"),
        ("lambda", "the word is reserved"),
        ("none", "the word is reserved"),
        ("true", "would be called True"),
        ("model-learner", "would be called ModelLearner"),
        ("tensor", "would be called Tensor"),
        ("plugins", "would be called metaforge_plugins"),
        ("my-lion", "is taken: hook 'My_Lion' of zoo 1.0"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        project("learner", name, tmp_path, TAKEN)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    made = project("learner", "my-idea", tmp_path, TAKEN)
    made.folder.mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        project("learner", "my-idea", tmp_path, TAKEN)
    with pytest.raises(ConfigError, match="exists already"):
        made.write()
    assert list(made.folder.iterdir()) == []


def test_the_command_writes_the_project_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "some folder"
    done = runner.invoke(app, ["new", "adapters", "my-idea", "--dir", str(folder)])
    assert done.exit_code == 0, done.stderr
    written = done.stdout.split("\n")[:-1]
    assert len(written) == 5
    assert all(Path(path).is_file() for path in written)
    for command in (f"pip install -e '{folder}/metaforge-my-idea'", "metaforge check my-idea", "--adapter my-idea"):
        assert command in done.stderr
    again = runner.invoke(app, ["new", "adapter", "my-idea", "--dir", str(folder)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_the_command_answers_in_json(tmp_path: Path) -> None:
    done = runner.invoke(app, ["new", "hook", "my-idea", "--dir", str(tmp_path), "--json"])
    answer = json.loads(done.stdout)
    assert answer["folder"] == str(tmp_path / "metaforge-my-idea")
    assert all((tmp_path / "metaforge-my-idea" / path).is_file() for path in answer["files"])
    assert answer["commands"][0].startswith("pip install -e ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["lerner", "my-idea"], "Did you mean 'learner'?"), (["learner", "maml"], "learner 'maml' of metaforge")],
)
def test_the_command_says_what_is_wrong(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = runner.invoke(app, ["new", *arguments, "--dir", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []
