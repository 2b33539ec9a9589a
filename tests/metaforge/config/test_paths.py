"""Paths of settings: keys with a dot are in quotes."""

from __future__ import annotations

import pytest

from metaforge.config.paths import joined, parts, quoted

GOOD = {
    "train.lr": ("train", "lr"),
    'train.groups."adapters.*".lr': ("train", "groups", "adapters.*", "lr"),
    "train.groups.'a.b'": ("train", "groups", "a.b"),
    "hooks.zoo:x.on": ("hooks", "zoo:x", "on"),
    "seed": ("seed",),
    '"a.b"': ("a.b",),
}


@pytest.mark.parametrize("path", GOOD)
def test_a_path_has_its_keys(path: str) -> None:
    assert parts(path) == GOOD[path]
    assert parts(joined(GOOD[path])) == GOOD[path]


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", 'a."b', "a.'b", 'a."b"c', 'a.""', '"a".'])
def test_other_texts_are_no_paths(path: str) -> None:
    assert parts(path) == ()


def test_only_keys_with_a_dot_are_quoted() -> None:
    assert [quoted(key) for key in ("a", "zoo:x", "a.b")] == ["a", "zoo:x", '"a.b"']
