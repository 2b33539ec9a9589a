"""Image files turned into uint8 arrays, with limits: an image is data from a stranger."""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metaforge.errors import DataError

Colour = Literal["grey", "rgb"]
Resample = Literal["box", "bilinear", "lanczos"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 16 * 10**6
# Its decoder keeps three pictures in colour and alpha beside the one that it hands over.
MAX_WEBP_PIXELS = 8 * 10**6
MAX_SIDE = 8192
# A photograph that is sent coarse to fine has about ten; each costs a pass over all pixels, however few its bytes.
MAX_SCANS = 100

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_image(
    path: Path, *, size: int | None = None, colour: Colour = "grey", resample: Resample = "box"
) -> NDArray[np.uint8]:
    """Return the image in a file as `[C, H, W]` uint8; `DataError`, naming the file, if it is none or is too large."""
    return decode_image(read_file(path), where=str(path), size=size, colour=colour, resample=resample)


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; `DataError`, naming it, if it cannot be read or is larger than any image."""
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the file cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            remedy="check that it is a file and that you may read it, or put the data set in place again",
        ) from error
    if len(data) > MAX_BYTES:
        raise _refusal(f"the file is larger than {MAX_BYTES // 2**20} MiB", str(path))
    return data


def decode_image(
    data: bytes,
    *,
    where: str,
    size: int | None = None,
    colour: Colour = "grey",
    resample: Resample = "box",
    verify: bool = True,
) -> NDArray[np.uint8]:
    """Return an encoded image as `[C, H, W]` uint8 (C = 1 or 3), resized to `size` by `size` if that is given.

    Transparent pixels show white; a photograph is turned upright; of an animation the first frame is taken.
    `verify` checks the file's own checksums as well: leave it out where an archive has checked them already.
    Raises `DataError`, naming `where`.
    """
    if not data or len(data) > MAX_BYTES:
        raise _refusal(f"the image file has {len(data):,} bytes, not 1 to {MAX_BYTES:,}", where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if verify:
                _verify(data, where)
            with _opened(data, where) as image:
                return _pixels(image, where, size, colour, resample)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refusal(f"the image is too large: {error}", where) from error
    except UnidentifiedImageError as error:
        raise _refusal(
            f"the file is no intact image of a known format (it begins with {data[:12]!r})", where
        ) from error
    except Exception as error:
        # What decoders raise on damaged or hostile input has no common base.
        raise _refusal(f"the image is damaged: {str(error) or type(error).__name__}", where) from error


def _verify(data: bytes, where: str) -> None:
    """Check a file's own checksums; the decoder is gone when this returns, before another one is made."""
    with _opened(data, where) as image:
        image.verify()


def _opened(data: bytes, where: str) -> Image.Image:
    """Open an image of an allowed format whose header claims no more pixels than the limits."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    most = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
    if width * height > most or max(width, height) > MAX_SIDE:
        limits = f"{most:,} or {MAX_SIDE:,} a side"
        raise _refusal(f"the image has {width} x {height} pixels, more than {limits}", where)
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise _refusal(f"the image is sent in more than {MAX_SCANS} scans", where)
    return image


def _pixels(image: Image.Image, where: str, size: int | None, colour: Colour, resample: Resample) -> NDArray[np.uint8]:
    """Decode an opened image into `[C, H, W]`."""
    if image.format in ("JPEG", "WEBP"):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it, and forget which grey is transparent.
        deep, clear = np.asarray(image), image.info.get("transparency")
        grey = (deep >> 8).astype(np.uint8)
        if clear is not None:
            grey[deep == clear] = 255
        image = Image.fromarray(grey)
    elif image.mode in ("I", "F"):
        raise _refusal(f"pixels of Pillow mode {image.mode!r} have no known range", where)
    if image.has_transparency_data:
        paper = Image.new("RGB", image.size, "white")
        inked = image if image.mode == "RGBA" else image.convert("RGBA")
        paper.paste(inked, mask=inked)
        image = paper
    wanted = "L" if colour == "grey" else "RGB"
    image = image if image.mode == wanted else image.convert(wanted)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), _FILTERS[resample])
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _refusal(what: str, where: str) -> DataError:
    return DataError(
        what, where=where, remedy=f"replace the file by an intact image ({', '.join(FORMATS)}) or take it out"
    )
