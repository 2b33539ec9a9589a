"""Settings that run files and checkpoints of earlier versions have under other names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# From the key in `train` to the table of the plugin that it names now.
_TABLES: Mapping[str, str] = MappingProxyType({"optimizer": "optimizer", "schedule": "schedule"})


def renamed(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return nested settings under their present names.

    Args:
        values: Settings nested as in a run file.

    Returns:
        The settings, and the present path of each renamed setting by its old one. A setting that is given under both
        names stays under both, and validation rejects the old one.
    """
    result, paths = dict(values), dict[str, str]()
    train = values.get("train")
    for old, table in _TABLES.items():
        if isinstance(train, Mapping) and isinstance(train.get(old), str) and not _names_plugin(result.get(table, {})):
            result["train"] = {key: value for key, value in result["train"].items() if key != old}
            result[table] = {"name": train[old], **result.get(table, {})}
            paths[f"train.{old}"] = f"{table}.name"
    return result, paths


def _names_plugin(table: Any) -> bool:
    return not isinstance(table, Mapping) or "name" in table
