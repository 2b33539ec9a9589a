"""Durations in a configuration: a number of seconds, or a text such as `90s`, `10m` or `1h30m`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
# A duration as text; pydantic copies the pattern into the JSON Schema of a run file.
Duration = Annotated[str, Field(pattern=rf"^\s*(?=[0-9])(?:{_DURATION.pattern})\s*$")]
Budget = Annotated[float, Field(gt=0)] | Duration | None
Interval = Annotated[float, Field(ge=0)] | Duration


def seconds(value: Any) -> Any:
    """Return a duration such as `90s`, `10m` or `1h30m` in seconds, and any other type unchanged.

    Raises `ValueError` for a text that is not a duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    if not value.strip() or match is None:
        raise ValueError(f"{value!r} is not a duration such as 90s, 10m or 1h30m")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest
