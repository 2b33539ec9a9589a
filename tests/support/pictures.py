"""What a test can see in a picture that was written: whether it is a PNG, and its colours."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def colours(path: Path) -> set[tuple[int, ...]]:
    """Return the colours of a picture; fail unless it is a valid PNG with something on it."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        counts = image.convert("RGB").getcolors(1 << 24)
    assert counts is not None
    assert len(counts) > 2
    return {colour for _, colour in counts}
