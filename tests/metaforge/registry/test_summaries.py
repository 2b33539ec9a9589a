"""Summaries: the first line of a docstring is read from any source file, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributions import ADAPTER, Install
from metaforge.registry.scan import scan
from metaforge.registry.summaries import Summaries, first_line


def test_the_summary_of_a_module_in_a_package_is_found_without_importing_the_package(
    install: Install, tmp_path: Path
) -> None:
    points = (
        "[metaforge.adapters]\nmine = mf_deep.inner.mod:Mine\nother = mf_deep.inner.mod:Absent\nlost = mf_deep.no:X"
    )
    install("mf-deep", points, ADAPTER, module="mf_deep/inner/mod")
    for package in ("mf_deep", "mf_deep/inner"):
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    found = {entry.name: entry.summary for entry in scan().entries("adapter") if entry.distribution == "mf-deep"}
    assert found == {"mine": "Mine, all mine.", "other": "The module.", "lost": ""}


# Builds the distribution in the current folder in editable form, as pip does, and lists its plugins.
EDITABLE = """
import json, site, subprocess, sys, zipfile
from pathlib import Path
from setuptools.build_meta import build_editable

wheel = build_editable("wheels")
zipfile.ZipFile(Path("wheels", wheel)).extractall("installed")
site.addsitedir("installed")
from metaforge.registry.scan import scan

found = {entry.name: entry.summary for entry in scan().entries("adapter") if entry.distribution == "mf-editable"}
imported = [name for name in sys.modules if name.startswith("mf_")]
finders = [path.name for path in Path("installed").glob("__editable__*.py")]
print(json.dumps([found, imported, len(finders)]))
"""


@pytest.mark.parametrize(("folder", "finders"), [("", 1), ("src/", 0)])
def test_the_summaries_of_a_distribution_that_setuptools_installed_in_editable_form_are_found(
    folder: str, finders: int, tmp_path: Path
) -> None:
    modules = {"mf_flat/inner/deep": "Deep.", "mf_single": "Single.", "mf_space/part/leaf": "Leaf."}
    for number, (module, text) in enumerate(modules.items()):
        path = tmp_path / f"{folder}{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'class Mine:\n    """{text}"""\nraise RuntimeError({number})', "utf-8")
    for package in ("mf_flat", "mf_flat/inner", "mf_space/part"):
        (tmp_path / f"{folder}{package}" / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    points = "".join(f"n{n} = '{module.replace('/', '.')}:Mine'\n" for n, module in enumerate(modules))
    (tmp_path / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'mf-editable'\nversion = '1.2'\n"
        f"[project.entry-points.'metaforge.adapters']\n{points}"
        f"[tool.setuptools]\npackages = ['mf_flat', 'mf_flat.inner', 'mf_space.part']\npy-modules = ['mf_single']\n"
        + ("package-dir = {'' = 'src'}\n" if folder else ""),
        "utf-8",
    )
    # With -P, the current folder is not on the path of modules, where the sources would be found anyway.
    command = [sys.executable, "-P", "-c", EDITABLE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found, imported, number_of_finders = json.loads(done.stdout.splitlines()[-1])
    assert number_of_finders == finders, "setuptools has made another layout than the test means"
    assert found == {f"n{number}": text for number, text in enumerate(modules.values())}
    assert imported == []


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""Module."""\nclass A:\n    """Class.\n\n    More."""', "Class."),
        ('"""Module."""\nclass A(B[int], meta={"a": 1}):  # words\n\n    # more\n    """\n    Class."""', "Class."),
        ("class A: 'Class.'", "Class."),
        ('"""Module."""\nclass AB:\n    """Other."""\nclass A:\n    x = "text"', "Module."),
        ('class A:\n    """Class."""\n)))) no Python at all', "Class."),
        ('#!/bin/python\n\n"""Module."""', "Module."),
        ("class A:\n    b'bytes'", ""),
        ('class A:\n    """   """', ""),
        ("x = 1", ""),
        ("", ""),
        (f'class A:\n    """{"long " * 100}"""', ("long " * 40)),
    ],
)
def test_the_first_line_of_the_docstring(source: str, line: str) -> None:
    assert first_line(source, "A") == line


@pytest.mark.parametrize(
    ("content", "summary"),
    [
        ("# coding: latin-1\nclass Mine:\n    'Grüße.'\n".encode("latin-1"), "Grüße."),
        (b"class Mine:\n    '\xff.'\n", ""),
        (b"\x00\x01\x02", ""),
        (b"class Mine:\n    'Early.'\n" + b"x = 1\n" * 2_000_000, "Early."),
        (b"x = 1\n" * 2_000_000 + b"class Mine:\n    'Late.'\n", ""),
    ],
)
def test_a_source_of_any_size_and_encoding_is_listed(install: Install, content: bytes, summary: str) -> None:
    install("mf-source", "[metaforge.adapters]\nmine = mf_source:Mine").write_bytes(content)
    assert scan().find("adapter", "mine").summary == summary


def test_a_module_without_a_source_has_no_summary() -> None:
    summaries = Summaries()
    assert summaries.of("sys:Absent") == ""
    assert summaries.of("mf_absent.module:Absent") == ""
    assert summaries.of("") == ""


def test_extras_of_a_target_are_ignored(install: Install) -> None:
    install("mf-extras", "", ADAPTER)
    assert Summaries().of("mf_extras : Mine [extra]") == "Mine, all mine."
