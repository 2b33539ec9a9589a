"""Row 13: damaged, hostile and unusual images, decoded in a child process to measure its memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.memory import peak_mib
from metaforge.data.images import read_image
from metaforge.errors import DataError
from tests.reliability.rows import Measured, Workspace, row

FORMS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
LIMIT_MIB = 300


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG with a correct checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, body: bytes = b"\0", extra: bytes = b"") -> bytes:
    """Return a PNG with this header; its body need not match the stated size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def gradient_image(width: int = 40, height: int = 24, mode: str = "L") -> Image.Image:
    """Return an image in which every pixel differs from its neighbours."""
    pixels = np.arange(width * height, dtype=np.uint32).reshape(height, width) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def jpeg_of_many_scans(scans: int) -> bytes:
    """Return a progressive JPEG with many scans; each scan costs the decoder a pass over all pixels."""
    data = encoded(Image.new("L", (1000, 1000), 128), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff\xd9", start)]
    return data[:start] + scan * scans + b"\xff\xd9"


def valid_images() -> dict[str, bytes]:
    """Return images that must be read: every mode, unusual sizes, rotated and animated ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [gradient_image().convert("P"), Image.new("P", (40, 24), 3)]
    deep = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)
    images = {
        form.lower(): encoded(gradient_image(mode="RGB" if form in ("JPEG", "WEBP") else "L"), form) for form in FORMS
    }
    return images | {
        "16-bit.png": encoded(deep),
        "cmyk.jpg": encoded(gradient_image(mode="CMYK"), "JPEG"),
        "palette.png": encoded(gradient_image(mode="P")),
        "palette-transparent.png": encoded(gradient_image(mode="P"), transparency=3),
        "alpha.png": encoded(gradient_image(mode="RGBA")),
        "grey-alpha.png": encoded(gradient_image(mode="LA")),
        "bits.png": encoded(gradient_image(mode="1")),
        "turned.jpg": encoded(gradient_image(mode="RGB"), "JPEG", exif=exif),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(
            gradient_image(mode="RGB"), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24))]
        ),
        "animated.png": encoded(gradient_image(), "PNG", save_all=True, append_images=[Image.new("L", (40, 24))]),
        "progressive.jpg": encoded(gradient_image(mode="RGB"), "JPEG", progressive=True),
        "1x1.png": encoded(gradient_image(1, 1)),
        "1x8000.png": encoded(gradient_image(1, 8000)),
        "largest.png": encoded(Image.new("RGBA", (4000, 4000), (9, 9, 9, 9)), compress_level=1),
        "largest-16-bit.png": png(4000, 4000, depth=16, body=bytes(4000 * 8001)),
        "largest.webp": encoded(Image.new("RGBA", (2828, 2828), (9, 9, 9, 9)), "WEBP", lossless=True, exif=exif),
        "16-bit-transparent.png": png(8, 8, depth=16, body=bytes(8 * 17), extra=chunk(b"tRNS", b"\0\0")),
        "wrong-name.txt": encoded(gradient_image()),
    }


def invalid_images() -> dict[str, bytes]:
    """Return files that must be refused: decompression bombs, other formats with a wrong suffix, truncated files."""
    complete, photo = encoded(gradient_image(200, 200)), encoded(gradient_image(200, 200, "RGB"), "JPEG")
    cut = {f"cut-{tenth}0.png": complete[: len(complete) * tenth // 10] for tenth in range(10)}
    cut |= {f"cut-{tenth}0.jpg": photo[: len(photo) * tenth // 10] for tenth in range(1, 10)}
    riff = b"VP8X" + struct.pack("<IB3x", 10, 2) + (16382).to_bytes(3, "little") * 2
    return cut | {
        "bomb-20000.png": png(20_000, 20_000),
        "bomb-full.png": png(9_000, 9_000, depth=1, body=bytes(9_000 * 1126)),
        "bomb-whole.png": png(5_000, 5_000, depth=1, body=bytes(5_000 * 626)),
        "bomb-whole.webp": encoded(Image.new("RGBA", (4000, 4000), (9, 9, 9, 9)), "WEBP", lossless=True),
        "bomb-max.png": png(2**31 - 1, 2**31 - 1),
        "bomb-rgb.png": png(8_000, 8_000, colour=2, body=bytes(10**6)),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(gradient_image(), "GIF")[10:],
        "bomb.bmp": encoded(gradient_image(), "BMP")[:18]
        + struct.pack("<ii", 30_000, 30_000)
        + encoded(gradient_image(), "BMP")[26:],
        "bomb.webp": b"RIFF" + struct.pack("<I", 4 + len(riff)) + b"WEBP" + riff,
        "text-bomb.png": png(8, 8, body=bytes(72), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9))),
        "scans.jpg": jpeg_of_many_scans(3000),
        "1x30000.png": encoded(gradient_image(1, 30_000)),
        "0x5.png": png(0, 5),
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "pdf.png": b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj\n%%EOF",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "tiff.png": encoded(gradient_image(), "TIFF"),
        "ppm.png": encoded(gradient_image(), "PPM"),
        "ico.png": encoded(gradient_image(32, 32), "ICO"),
        "float.png": encoded(Image.new("F", (3, 3)), "TIFF"),
        "html.png": b"<html><body>404 Not Found</body></html>",
        "empty.png": b"",
        "zeros.png": bytes(5000),
        "zip.png": b"PK\x03\x04" + bytes(100),
        "crc.png": complete[:60] + bytes([complete[60] ^ 255]) + complete[61:],
        "no-data.png": complete.replace(b"IDAT", b"IDAX"),
        "too-long.png": complete + bytes(33 * 2**20),
    }


def fuzzed(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield images with flipped, random, doubled or missing bytes."""
    generator = np.random.default_rng(seed)
    seeds = [data for data in valid_images().values() if len(data) < 20_000]
    for index in range(count):
        data = bytearray(seeds[int(generator.integers(len(seeds)))])
        for _ in range(int(generator.integers(1, 6))):
            place, length = int(generator.integers(len(data))), int(generator.integers(1, 17))
            match int(generator.integers(4)):
                case 0:
                    data[place] ^= 1 << int(generator.integers(8))
                case 1:
                    data[place : place + length] = generator.bytes(length)
                case 2:
                    data[place:place] = data[place : place + length]
                case _:
                    del data[place : place + length]
        yield f"fuzzed-{index:04d}", bytes(data)


def verdict(path: Path) -> str:
    """Return `read`, `refused: ` and the reason, or `fault: ` and what is wrong."""
    try:
        pixels = read_image(path, size=28, colour="rgb")
    except DataError as error:
        helpful = error.where == str(path) and error.what and error.remedy and "0x" not in error.what
        return f"refused: {error.what}" if helpful else f"fault: {error}"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {error}"
    return "read" if pixels.shape == (3, 28, 28) and pixels.dtype == np.uint8 else f"fault: {pixels.shape}"


def decode_in_process(folder: Path, *, waste_mib: int = 0) -> subprocess.CompletedProcess[str]:
    """Decode the images of a folder in a child process, which also allocates `waste_mib` of memory."""
    call = f"decode_here(Path({str(folder)!r}), {waste_mib})"
    program = f"from pathlib import Path; from tests.reliability.images import decode_here; {call}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def decode_here(folder: Path, waste_mib: int) -> None:
    """Decode the images of a folder; print the verdicts and the growth of the peak memory as JSON."""
    verdicts, before = {}, peak_mib()
    for path in sorted(folder.iterdir()):
        verdicts[path.name] = verdict(path)
    wasted = b"x" * (waste_mib << 20)
    print(json.dumps({"verdicts": verdicts, "growth_mib": peak_mib() - before, "wasted": len(wasted)}))  # noqa: T201


@row(
    13, "fuzzed and hostile images", goal="0 crashes, at most 300 MiB extra memory, each bad file named with its reason"
)
def fuzzed_images(workspace: Workspace, *, count: int = 1000, seed: int = 13) -> Measured:
    """Decode hand-made and fuzzed images in a child process."""
    images, valid, invalid = workspace.subfolder("images"), valid_images(), invalid_images()
    expected = dict.fromkeys(valid, "read") | dict.fromkeys(invalid, "refused")
    for name, data in (*valid.items(), *invalid.items(), *fuzzed(seed, count)):
        (images / name).write_bytes(data)
    child = decode_in_process(images)
    if child.returncode != 0:
        return Measured(False, f"the process died: {child.returncode}: {child.stderr[-500:]}")
    report = json.loads(child.stdout)
    verdicts = report["verdicts"]
    faults = {
        name: outcome
        for name, outcome in verdicts.items()
        if not outcome.startswith(expected.get(name, ("read", "refus")))
    }
    counts = Counter("fault" if name in faults else outcome.split(":")[0] for name, outcome in verdicts.items())
    return Measured(
        not faults
        and len(verdicts) == len(expected) + count
        and report["growth_mib"] <= LIMIT_MIB
        and not child.stderr,
        f"{len(verdicts)} images ({len(expected)} hand-made): {counts['refused']} refused by name,"
        f" {counts['read']} read, {counts['fault']} faults; {report['growth_mib']:.0f} MiB extra memory at most",
        {
            "verdicts": dict(counts),
            "hand_made": len(expected),
            "growth_mib": round(report["growth_mib"], 1),
            "faults": faults,
        },
    )
