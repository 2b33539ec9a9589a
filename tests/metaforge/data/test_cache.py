"""Tests of the cache: reused for an equal key, rebuilt with a warning if damaged, skipped if it cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaforge.data.cache import Arrays, cache_folder, load_or_build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"images": np.arange(5000, dtype=np.uint16), "names": np.array(["a", "bc"])}


def test_the_cache_is_used_for_the_same_key_only(folder: Path) -> None:
    build = Builder()
    for key in ({"size": 28, "source": "x"}, {"source": "x", "size": 28}):
        arrays = load_or_build("set", key, build)
        assert arrays["names"].tolist() == ["a", "bc"]
        assert np.array_equal(arrays["images"], np.arange(5000))
    assert build.calls == 1
    load_or_build("set", {"size": 32, "source": "x"}, build)
    load_or_build("other", {"size": 28, "source": "x"}, build)
    assert build.calls == 3
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "pickle", "method", "header", "lost"])
def test_a_damaged_cache_is_built_again_with_a_warning(folder: Path, damage: str) -> None:
    build = Builder()
    load_or_build("set", {}, build)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    if damage == "pickle":
        np.savez(path, images=np.array([{}], dtype=object))
    elif damage == "lost":
        with np.load(path, allow_pickle=False) as whole:
            np.savez(path, **{name: whole[name] for name in whole.files if name != "names"})
    elif damage in ("method", "header"):
        # An unknown compression method, or a wrong length in the local header.
        place = good.index(b"PK\x01\x02") + 10 if damage == "method" else good.index(b"PK\x03\x04") + 26
        path.write_bytes(good[:place] + b"\x63" + good[place + 1 :])
    else:
        flipped = good[:4000] + bytes([good[4000] ^ 1]) + good[4001:]
        path.write_bytes({"empty": b"", "cut": good[:5000], "flipped": flipped, "foreign": b"hello"}[damage])
    with pytest.warns(RuntimeWarning, match="damaged and is built again"):
        arrays = load_or_build("set", {}, build)
    assert np.array_equal(arrays["images"], np.arange(5000))
    assert build.calls == 2
    load_or_build("set", {}, build)
    assert build.calls == 2


def test_a_cache_that_cannot_be_written_is_skipped_with_a_warning(folder: Path) -> None:
    folder.write_text("a file, not a folder")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        arrays = load_or_build("set", {}, Builder())
    assert len(arrays["images"]) == 5000


def test_without_the_variable_it_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFORGE_CACHE")
    assert cache_folder().name == "metaforge"
