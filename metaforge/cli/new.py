"""`metaforge new`: write a project for a new plugin from templates: a working minimum, its tests and a README."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from metaforge import __version__
from metaforge.cli.options import AsJson
from metaforge.cli.output import guarded, put, put_json, say
from metaforge.errors import ConfigError
from metaforge.registry.entry import kind_called
from metaforge.registry.registry import Registry

_NAME = re.compile(r"(?=.{1,40}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")


@guarded
def new(
    kind: Annotated[str, typer.Argument(help="learner, adapter, dataset, regularizer, backbone or hook.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin, e.g. my-idea.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder in which the project's folder is made.")] = Path(),
    json: AsJson = False,
) -> None:
    """Write a project for a plugin of your own: a working minimum, its tests and a README."""
    from metaforge.registry.scan import scan

    made = project(kind, name, folder, scan())
    made.write()
    if json:
        put_json({"folder": str(made.folder), "files": sorted(made.files), "commands": list(made.commands)})
        return
    for path in sorted(made.files):
        put(str(made.folder / path))
    say("Next:")
    for command in made.commands:
        say(f"  {command}")


@dataclass(frozen=True)
class Project:
    """A project for a plugin: its files by their paths in the folder, and the commands to go on with."""

    folder: Path
    files: Mapping[str, str]
    commands: tuple[str, ...]

    def write(self) -> None:
        """Write the files into the folder, which must not exist; `ConfigError` if it does."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as error:
            raise _taken(self.folder) from error
        for name, text in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def project(kind: str, name: str, folder: Path, registry: Registry) -> Project:
    """Return the project of a new plugin, to be written below `folder`; nothing is written yet.

    Raises `ConfigError` for a name that is taken or cannot be used, and for a folder that exists.
    """
    kind = kind_called(kind)
    _check_name(name, registry)
    file = name.replace("-", "_")
    words = {
        "kind": kind,
        "article": "An" if kind.startswith("a") else "A",
        "name": name,
        "file": file,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "module": f"metaforge_{file}",
        "distribution": f"metaforge-{name}",
        "versions": _versions(__version__),
    }
    _check_words(words, _template(kind, "plugin"))
    target = folder / words["distribution"]
    if target.exists():
        raise _taken(target)
    words["train"] = _filled(kind, "train", words).strip()
    made = {
        "pyproject.toml": _filled("project", "pyproject", words),
        "README.md": _filled("project", "readme", words),
        f"src/{words['module']}/__init__.py": _filled(kind, "plugin", words),
        f"src/{words['module']}/py.typed": "",
        f"tests/test_{file}.py": _filled("project", "test", words),
    }
    return Project(
        target, made, (f"pip install -e {shlex.quote(str(target))}", f"metaforge check {name}", words["train"])
    )


def _check_name(name: str, registry: Registry) -> None:
    remedy = "choose a name such as 'my-idea': lower-case letters and digits, with single hyphens between"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of a plugin.", where="NAME", remedy=remedy)
    if keyword.iskeyword(name) or name == "none":
        raise ConfigError(
            f"{name!r} cannot be the name of a plugin: the word is reserved.", where="NAME", remedy=remedy
        )
    same = [entry for entry in registry.entries() if entry.name.lower().replace("_", "-") == name]
    if same:
        raise ConfigError(
            f"The name {name!r} is taken: {' and '.join(entry.label for entry in same)}.",
            where="NAME",
            remedy="choose another name; `metaforge list-plugins` shows those that are taken",
        )


def _check_words(words: Mapping[str, str], source: str) -> None:
    """Refuse a class or a module that would stand in the way of another."""
    cls, module = words["cls"], words["module"]
    if keyword.iskeyword(cls) or re.search(rf"\b{cls}\b", source):
        raise ConfigError(
            f"The class of {words['name']!r} would be called {cls}, a word that its source needs for something else.",
            where="NAME",
            remedy="choose another name, of two words perhaps",
        )
    if PathFinder.find_spec(module) is not None:
        raise ConfigError(
            f"The module of {words['name']!r} would be called {module}, and one of that name is installed.",
            where="NAME",
            remedy="choose another name",
        )


def _taken(folder: Path) -> ConfigError:
    return ConfigError(
        f"{folder} exists already.", where="--dir", remedy="choose another name, or another folder with --dir"
    )


def _versions(version: str) -> str:
    """Return the versions that a plugin written today may expect to work with, as a specifier."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _filled(folder: str, name: str, words: Mapping[str, str]) -> str:
    return Template(_template(folder, name)).substitute(words)


def _template(folder: str, name: str) -> str:
    return (files("metaforge.cli") / "templates" / folder / f"{name}.txt").read_text(encoding="utf-8")
