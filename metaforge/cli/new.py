"""`metaforge new`: writes a project for a new plugin from templates: a small working plugin, its tests and a README."""

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

from metaforge import __version__, authoring
from metaforge.cli.options import AsJson
from metaforge.cli.output import handle_errors, print_answer, print_json, print_note
from metaforge.errors import ConfigError
from metaforge.registry.entry import KINDS, kind_called
from metaforge.registry.registry import Registry

_NAME = re.compile(r"(?=.{1,40}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")


@handle_errors
def new(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin, e.g. my-idea.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder in which the project's folder is created.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a project for a new plugin: a small working plugin, its tests and a README."""
    from metaforge.registry.scan import scan

    project = make_project(kind, name, folder, scan())
    project.write()
    if as_json:
        print_json({"folder": str(project.folder), "files": sorted(project.files), "commands": list(project.commands)})
        return
    for path in sorted(project.files):
        print_answer(str(project.folder / path))
    print_note("Next:")
    for command in project.commands:
        print_note(f"  {command}")


@dataclass(frozen=True)
class Project:
    """A project for a plugin: the text of each file by its path in the folder, and the commands to run next."""

    folder: Path
    files: Mapping[str, str]
    commands: tuple[str, ...]

    def write(self) -> None:
        """Create the folder and write the files; `ConfigError` if the folder exists."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as error:
            raise _folder_exists(self.folder) from error
        for name, text in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def make_project(kind: str, name: str, folder: Path, registry: Registry) -> Project:
    """Return the project of a new plugin; nothing is written yet.

    Args:
        kind: Kind of plugin, in the singular or the plural.
        name: Name of the plugin.
        folder: Folder in which the project's folder is to be created.
        registry: The installed plugins, whose names are taken.

    Raises:
        ConfigError: The name is taken or cannot be used, or the project's folder exists.
    """
    kind = kind_called(kind)
    _check_name(name, registry)
    file = name.replace("-", "_")
    fields = {
        "kind": kind,
        "article": "An" if kind[0] in "aeiou" else "A",
        "name": name,
        "file": file,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "module": f"metaforge_{file}",
        "distribution": f"metaforge-{name}",
        "versions": _version_specifier(__version__),
    }
    _check_identifiers(fields, _template(kind, "plugin"))
    target = folder / fields["distribution"]
    if target.exists():
        raise _folder_exists(target)
    fields["train"] = _fill_template(kind, "train", fields).strip()
    contents = {
        "pyproject.toml": _fill_template("project", "pyproject", fields),
        "README.md": _fill_template("project", "readme", fields),
        f"src/{fields['module']}/__init__.py": _fill_template(kind, "plugin", fields),
        f"src/{fields['module']}/py.typed": "",
        f"tests/test_{file}.py": _fill_template("project", "test", fields),
    }
    return Project(
        target, contents, (f"pip install -e {shlex.quote(str(target))}", f"metaforge check {name}", fields["train"])
    )


def _check_name(name: str, registry: Registry) -> None:
    """Raise `ConfigError` for the name of a plugin that is invalid, reserved or taken."""
    remedy = "choose a name such as 'my-idea': words of lower-case letters and digits, joined by single hyphens"
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


def _check_identifiers(fields: Mapping[str, str], source: str) -> None:
    """Raise `ConfigError` if the plugin's class or module would hide another one of the same name."""
    cls, module = fields["cls"], fields["module"]
    if keyword.iskeyword(cls) or cls in authoring.__all__ or re.search(rf"\b{cls}\b", source):
        raise ConfigError(
            f"The class of {fields['name']!r} would be called {cls}, but its source uses this name already.",
            where="NAME",
            remedy="choose another name, for example one of two words",
        )
    if PathFinder.find_spec(module) is not None:
        raise ConfigError(
            f"The module of {fields['name']!r} would be called {module}, and a module of this name is installed.",
            where="NAME",
            remedy="choose another name",
        )


def _folder_exists(folder: Path) -> ConfigError:
    return ConfigError(
        f"{folder} exists already.", where="--dir", remedy="choose another name, or another folder with --dir"
    )


def _version_specifier(version: str) -> str:
    """Return the specifier of MetaForge's versions that are compatible with this one, e.g. `>=0.3,<0.4`."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _fill_template(folder: str, name: str, fields: Mapping[str, str]) -> str:
    return Template(_template(folder, name)).substitute(fields)


def _template(folder: str, name: str) -> str:
    return (files("metaforge.cli") / "templates" / folder / f"{name}.txt").read_text(encoding="utf-8")
