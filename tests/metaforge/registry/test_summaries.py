"""Summaries: the first line of a docstring is read from any source file, without importing it."""

from __future__ import annotations

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
