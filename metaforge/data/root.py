"""The folder that holds data sets."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Return the folder that holds data sets: METAFORGE_DATA, or the user's data folder."""
    import platformdirs

    return Path(os.environ.get("METAFORGE_DATA") or platformdirs.user_data_dir("metaforge")).expanduser()
