"""Fixtures for all tests: a cache folder of the tests' own, and the real Omniglot images where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAFORGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """Return the folder that holds `omniglot/` with the real images; skip the test where there is none."""
    root = Path(os.environ.get("METAFORGE_DATA", ""))
    if "METAFORGE_DATA" not in os.environ or not (root / "omniglot").is_dir():
        pytest.skip(
            "needs the real Omniglot images: run `metaforge data fetch omniglot`, or put images_background.zip and "
            "images_evaluation.zip into <data>/omniglot, and set METAFORGE_DATA to <data>"
        )
    return root.resolve()
