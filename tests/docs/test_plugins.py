"""The pages of `docs/plugins/` are up to date, and those of learners say how they depart from their papers."""

from __future__ import annotations

import importlib.util
import inspect
import re
from types import ModuleType
from typing import Any

import pytest

from blocks import ROOT
from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan

FOLDER = ROOT / "docs" / "plugins"
LEARNERS = [entry for entry in scan().entries("learner") if entry.distribution == CORE]
HEADING = "## Departures from the paper"


def generate() -> ModuleType:
    """Return the module `docs/generate.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_equal_those_that_make_docs_writes() -> None:
    expected = generate().pages()
    pages = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*")}
    assert sorted(pages) == sorted(expected), (
        "pages are missing, or describe plugins that do not exist: run `make docs`"
    )
    stale = [name for name, text in expected.items() if pages[name] != text]
    assert not stale, f"{stale} are stale: run `make docs`"


def test_there_are_learners() -> None:
    assert len(LEARNERS) >= 7


@pytest.mark.parametrize("entry", LEARNERS, ids=lambda entry: entry.name)
def test_the_page_of_a_learner_says_how_it_departs_from_its_paper(entry: Any) -> None:
    text = (FOLDER / f"{entry.name}.md").read_text("utf-8")
    before, _, section = text.partition(f"\n{HEADING}\n")
    assert re.search(r"\w+ \w+.*\.$", section, re.MULTILINE), f"write a list under {HEADING[3:]}: in its docstring"
    assert HEADING[3:] not in before + section, "the section is on the page twice"
    docstring = inspect.getdoc(scan().load("learner", entry.name)) or ""
    assert section.strip() in docstring, "the section is not what `metaforge describe` prints"
    for item in re.split(r"^- ", section.strip(), flags=re.MULTILINE):
        assert not item or item.strip().endswith("."), f"not a sentence: {item}"


def test_a_docstring_is_split_at_the_line_of_the_departures() -> None:
    split = generate().split_departures
    assert split("Sums.\n\nMore.") == ("Sums.\n\nMore.", "")
    assert split("Sums.\n\nDepartures from the paper:\n- One.\n  Two.\n- Three.") == (
        "Sums.",
        "- One.\n  Two.\n- Three.",
    )
    assert split("Sums.\n\nDepartures from the paper:\nThere are none.") == ("Sums.", "There are none.")
