"""The glossary is in order, its names of code exist, and its links lead to pages."""

from __future__ import annotations

import re
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest

from blocks import ROOT
from metaforge.config.settings import RunConfig

PAGE = ROOT / "docs" / "glossary.md"
ENTRIES = dict(re.findall(r"^- \*\*(.+?)\*\*: ((?:.+\n)(?:  .+\n)*)", PAGE.read_text("utf-8"), re.MULTILINE))


def resolve(name: str) -> Any:
    """Return the module or the object with a dotted name; raise `ImportError` or `AttributeError` if there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_the_terms_are_sorted_and_unique() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*:", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(terms) == len(ENTRIES) >= 35
    assert all(before < after for before, after in pairwise(terms))


@pytest.mark.parametrize("term", ENTRIES)
def test_an_entry_has_at_most_three_sentences_and_a_link_to_a_page(term: str) -> None:
    text = " ".join(ENTRIES[term].split())
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert links
    assert all((PAGE.parent / link).is_file() for link in links)
    definition = text.partition("See ")[0]
    assert 1 <= len(re.findall(r"\.(?= |$)", definition)) <= 3


def test_every_name_of_code_exists() -> None:
    names = re.findall(r"`(metaforge(?:\.\w+)+)`", PAGE.read_text("utf-8"))
    groups = [name for name in names if name in ("metaforge.learners",)]
    for name in set(names) - set(groups):
        assert resolve(name) is not None
    for owner, attribute in re.findall(r"`(Learner|Regularizer|Task|Aux)\.(\w+)`", PAGE.read_text("utf-8")):
        assert hasattr(resolve(f"metaforge.authoring.{owner}"), attribute), f"{owner}.{attribute}"
    for section, setting in re.findall(r"`(engine|train)\.(\w+)`", PAGE.read_text("utf-8")):
        assert hasattr(getattr(RunConfig(), section), setting), f"{section}.{setting}"
