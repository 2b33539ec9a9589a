"""Decodes untrusted image files into uint8 arrays, within limits on size and memory."""

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
"""Filters for resizing images."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 16 * 10**6
# The WebP decoder holds three RGBA images in memory beside the one that it returns.
MAX_WEBP_PIXELS = 8 * 10**6
MAX_SIDE = 8192
# A progressive JPEG usually has about ten scans. Decoding visits all pixels for each scan, however few bytes it has.
MAX_SCANS = 100

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_image(
    path: Path, *, size: int | None = None, colour: Colour = "grey", resample: Resample = "box"
) -> NDArray[np.uint8]:
    """Return the image in a file as `[C, H, W]` uint8; raise `DataError`, naming the file, if it cannot be used."""
    return decode_image(read_file(path), where=str(path), size=size, colour=colour, resample=resample)


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most 32 MiB.

    Args:
        path: The file.

    Returns:
        All its bytes.

    Raises:
        DataError: The file is missing, is not a regular file, cannot be read or is too large.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from metaforge.data import read_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "classes.txt"
        ...     _ = path.write_bytes(b"Greek")
        ...     read_file(path)
        b'Greek'
    """
    try:
        # Opening a named pipe would block until another process writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the file cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            remedy="check that it is a regular file with read permission, or install the data set again",
        ) from error
    if len(data) > MAX_BYTES:
        raise _image_error(f"the file is larger than {MAX_BYTES // 2**20} MiB", str(path))
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
    """Decode an image and return its pixels.

    Transparent pixels become white, the EXIF orientation of photographs is applied, and only the first frame of an
    animation is used.

    Args:
        data: Contents of the image file.
        where: What the message of an error names, usually the path.
        size: Height and width to resize to; by default the image keeps its size.
        colour: `grey` for one channel, `rgb` for three.
        resample: Filter for resizing.
        verify: Whether to verify the checksums inside the file. Not needed for a member of an archive, whose own
            checksum has been verified.

    Returns:
        Pixels `[C, H, W]` uint8 with C = 1 or 3.

    Raises:
        DataError: The data are not an intact image of a known format, or exceed a limit.
    """
    if not data or len(data) > MAX_BYTES:
        raise _image_error(f"the image file has {len(data):,} bytes, not 1 to {MAX_BYTES:,}", where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if verify:
                _verify(data, where)
            with _open_image(data, where) as image:
                return _decoded_pixels(image, where, size, colour, resample)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _image_error(f"the image is too large: {error}", where) from error
    except UnidentifiedImageError as error:
        raise _image_error(
            f"the file is not an intact image of a known format (it begins with {data[:12]!r})", where
        ) from error
    except Exception as error:
        # The exceptions that decoders raise on damaged or malicious input have no common base class.
        raise _image_error(f"the image is damaged: {str(error) or type(error).__name__}", where) from error


def _verify(data: bytes, where: str) -> None:
    """Verify the checksums inside an image file.

    A function, so that this decoder's memory is freed before the next decoder is created.
    """
    with _open_image(data, where) as image:
        image.verify()


def _open_image(data: bytes, where: str) -> Image.Image:
    """Open an image without decoding it; raise `DataError` if its format or the size in its header is not allowed."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    max_pixels = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        limits = f"{max_pixels:,} pixels or {MAX_SIDE:,} per side"
        raise _image_error(f"the image has {width} x {height} pixels, more than {limits}", where)
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise _image_error(f"the JPEG image has more than {MAX_SCANS} scans", where)
    return image


def _decoded_pixels(
    image: Image.Image, where: str, size: int | None, colour: Colour, resample: Resample
) -> NDArray[np.uint8]:
    """Return the pixels of an open image, `[C, H, W]`."""
    if image.format in ("JPEG", "WEBP"):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey values at 255 instead of scaling them, and lose the transparent value.
        grey16, transparent = np.asarray(image), image.info.get("transparency")
        grey = (grey16 >> 8).astype(np.uint8)
        if transparent is not None:
            grey[grey16 == transparent] = 255
        image = Image.fromarray(grey)
    elif image.mode in ("I", "F"):
        raise _image_error(f"the range of pixel values is unknown in Pillow mode {image.mode!r}", where)
    if image.has_transparency_data:
        background = Image.new("RGB", image.size, "white")
        foreground = image if image.mode == "RGBA" else image.convert("RGBA")
        background.paste(foreground, mask=foreground)
        image = background
    mode = "L" if colour == "grey" else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), _FILTERS[resample])
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _image_error(what: str, where: str) -> DataError:
    return DataError(
        what, where=where, remedy=f"replace the file with an intact image ({', '.join(FORMATS)}) or remove it"
    )
