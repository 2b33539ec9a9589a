"""Tests of image decoding: correct pixels for each format, and refusal of damaged and malicious files by name."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaforge.data import images
from metaforge.data.images import decode_image, read_image
from metaforge.errors import DataError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a small PNG file whose header has this size."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return chunks


RAMP = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(12, 20))


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_each_format_is_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(encoded(RAMP, form))
    grey, rgb = read_image(path), read_image(path, colour="rgb")
    assert (grey.shape, rgb.shape, grey.dtype) == ((1, 12, 20), (3, 12, 20), np.uint8)
    error = np.abs(grey[0].astype(int) - np.asarray(RAMP).astype(int)).max()
    assert error <= (0 if form in ("PNG", "BMP", "GIF") else 12)


@pytest.mark.parametrize("resample", ["box", "bilinear", "lanczos"])
def test_images_are_resized(resample: images.Resample) -> None:
    small = decode_image(encoded(RAMP), where="x", size=6, resample=resample)
    assert small.shape == (1, 6, 6)
    assert abs(small.mean() - np.asarray(RAMP).mean()) < 2


def test_the_box_filter_averages() -> None:
    checks = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 254).astype(np.uint8))
    assert (decode_image(encoded(checks), where="x", size=4) == 127).all()


def test_every_mode_is_handled() -> None:
    assert (decode_image(encoded(Image.new("1", (3, 3), 1)), where="x") == 255).all()
    assert (decode_image(encoded(Image.new("RGBA", (3, 3), (0, 0, 0, 0))), where="x") == 255).all()
    assert (decode_image(encoded(Image.new("LA", (3, 3), (9, 255))), where="x") == 9).all()
    assert (decode_image(encoded(Image.new("P", (3, 3))), where="x", colour="rgb").shape) == (3, 3, 3)
    deep = Image.fromarray(np.full((3, 3), 0x8000, dtype=np.uint16))
    assert (decode_image(encoded(deep), where="x") == 0x80).all()
    assert decode_image(encoded(Image.new("CMYK", (3, 3)), "JPEG"), where="x").shape == (1, 3, 3)


def test_transparent_pixels_of_16_bits_are_white() -> None:
    deep = np.array([[0, 0x8000], [0x8000, 0]], dtype=np.uint16)
    data = encoded(Image.fromarray(deep), transparency=0)
    assert decode_image(data, where="x")[0].tolist() == [[255, 0x80], [0x80, 255]]


def test_an_intact_image_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="more than 16,000,000"):
        decode_image(encoded(Image.new("1", (4100, 4000))), where="x", size=4)
    with pytest.raises(DataError, match="more than 8,000,000"):
        decode_image(encoded(Image.new("RGB", (2900, 2900)), "WEBP"), where="x", size=4)


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(RAMP, "JPEG", exif=exif), where="x").shape == (1, 20, 12)


PNG = encoded(RAMP)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        PNG[: len(PNG) // 2],
        PNG[:40],
        PNG.replace(b"IDAT", b"IDAX"),
        PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
        encoded(RAMP, "JPEG")[:200],
        encoded(RAMP, "TIFF"),
        encoded(RAMP, "PPM"),
        png_header(20_000, 20_000),
        png_header(9_000, 9_000),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(0, 5),
    ],
    ids=range(13),
)
def test_damaged_and_unknown_files_are_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(path, size=28)
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_flipped_bytes_never_raise_anything_else() -> None:
    for form in ("PNG", "GIF", "WEBP", "BMP", "JPEG"):
        good = encoded(RAMP, form)
        for place in range(0, len(good), 3):
            bad = good[:place] + bytes([good[place] ^ 0xA5]) + good[place + 1 :]
            with contextlib.suppress(DataError):
                decode_image(bad, where="x", size=8)


def test_large_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    path.write_bytes(PNG)
    with pytest.raises(DataError, match="larger than"):
        read_image(path)
