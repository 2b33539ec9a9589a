"""The folder that holds data sets."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Return the folder that holds data sets: `METAFORGE_DATA` if it is set, else the user data folder of the platform.

    A leading `~` is expanded. The folder need not exist.

    Example:
        >>> import os
        >>> from unittest.mock import patch
        >>> from metaforge.data import data_root
        >>> with patch.dict(os.environ, METAFORGE_DATA="/srv/data"):
        ...     data_root().as_posix()
        '/srv/data'
    """
    import platformdirs

    return Path(os.environ.get("METAFORGE_DATA") or platformdirs.user_data_dir("metaforge")).expanduser()
