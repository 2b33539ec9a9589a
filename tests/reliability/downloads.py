"""Row 12: downloads that break off, lie or lead elsewhere, from servers of this machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import unittest.mock
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaforge.data.downloads import open_https
from metaforge.data.trees import ZipTree, content_digest, fetch_tree
from metaforge.errors import DataError
from tests.reliability.rows import Measured, Room, row

MAX_BYTES = 2**20
SILENCE = 0.4
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def served_archive() -> bytes:
    """Return the archive that is to be fetched: images of noise, about 900 kB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(40):
            image = io.BytesIO()
            noise = np.random.default_rng(index).integers(0, 256, (150, 150), dtype=np.uint8)
            Image.fromarray(noise).save(image, "PNG")
            archive.writestr(f"set/a/{index}.png", image.getvalue())
    return file.getvalue()


@dataclass
class Site:
    """An https server and a plain one; `answers` says what a path of the first sends, `plain` what was asked of it."""

    port: int
    plain_port: int
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    plain: list[bytes] = field(default_factory=list)

    def url(self, path: str) -> str:
        """Return the address of an answer."""
        return f"https://127.0.0.1:{self.port}/{path}"


def certificate(folder: Path) -> Path:
    """Make a certificate for this machine that nobody vouches for; return the file of it and its key."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(folder / "public.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (folder / "public.pem").read_bytes())
    return path


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    site: Site
    context: ssl.SSLContext | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: that clients break off is what is being tried."""


class _Answering(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        """Speak TLS where the server does."""
        context = getattr(self.server, "context", None)
        if context is not None:
            self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """Close what was opened, whether or not the client has left."""
        try:
            super().finish()
        finally:
            self.rfile.close()
            with contextlib.suppress(OSError, ValueError):
                self.wfile.close()
            self.request.close()

    def handle(self) -> None:
        """Read a request and send what the site has for its path, byte by byte as it is."""
        server: Any = self.server
        first = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        if server.context is None:
            server.site.plain.append(first)
            self.wfile.write(HEAD + b"\r\nplain")
            return
        server.site.answers[first.split()[1].decode().strip("/")](self)
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.request.unwrap()


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Run both servers, and trust the certificate of the one."""
    path = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with _Server(("127.0.0.1", 0), _Answering) as secure, _Server(("127.0.0.1", 0), _Answering) as plain:
        secure.context = context
        made = Site(secure.server_address[1], plain.server_address[1])
        secure.site = plain.site = made
        for server in (secure, plain):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with unittest.mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(folder / "public.pem"), "no_proxy": "*"}):
            yield made
        for server in (secure, plain):
            server.shutdown()


def sends(*parts: bytes, silence: float = 0.0) -> Callable[[Any], None]:
    """Return an answer of these bytes, with silence before each part but the first."""

    def send(handler: Any) -> None:
        for index, part in enumerate(parts):
            if index:
                handler.wfile.flush()
                time.sleep(silence)
            handler.wfile.write(part)

    return send


def whole(body: bytes, *, length: bytes | int | None = None, more: bytes = b"") -> bytes:
    """Return a sound answer with that body, or one whose length lies."""
    stated = str(len(body)).encode() if length is None else str(length).encode() if isinstance(length, int) else length
    return HEAD + b"Content-Length: " + stated + b"\r\n" + more + b"\r\n" + body


def leads(code: int, location: str) -> bytes:
    """Return a redirection."""
    return f"HTTP/1.1 {code} Moved\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()


def endless(handler: Any) -> None:
    """Send without end, and without saying how much."""
    handler.wfile.write(HEAD + b"\r\n")
    while True:
        handler.wfile.write(bytes(2**16))


def bad_answers(made: Site, body: bytes) -> dict[str, Callable[[Any], None]]:
    """Return every answer that must not become the data set."""
    http, html = f"http://127.0.0.1:{made.plain_port}/good", b"<html><body>rate limited</body></html>"
    half, wrong = body[: len(body) // 2], body[:500] + bytes([body[500] ^ 1]) + body[501:]
    found = {
        "truncated": whole(half, length=len(body)),
        "truncated, length unknown": HEAD + b"\r\n" + half,
        "truncated, length of the half": whole(half),
        "wrong digest": whole(wrong),
        "empty": whole(b""),
        "more than it should be": whole(body + b"more"),
        "HTML": whole(html, more=b"Content-Type: text/html\r\n"),
        "404": b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "500": b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "redirect-loop": leads(302, made.url("redirect-loop")),
        "redirection to a file": leads(302, "file:///etc/passwd"),
        "redirection to ftp": leads(302, "ftp://127.0.0.1/x"),
        "redirection to an address that makes no sense": leads(302, "https://[bad"),
        "redirection to a port that makes no sense": leads(302, "https://127.0.0.1:99999999/"),
        "redirection to a name that makes no sense": leads(302, f"https://{'a' * 300}.example/"),
        "too large": whole(b"", length=2**40),
        "length of strange digits": whole(wrong, length=b"\xb2"),
        "length of thousands of digits": whole(wrong, length=b"9" * 5000),
        "negative length": whole(wrong, length=b"-5"),
        "compressed on the way": whole(__import__("gzip").compress(body), more=b"Content-Encoding: gzip\r\n"),
        "broken chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\n" + half,
        "no HTTP": b"\0\1\2\3 hello\r\n\r\n",
        "a thousand headers": HEAD + b"X-A: b\r\n" * 1000 + b"\r\n" + body,
        "endless header": HEAD + b"X: " + b"a" * 10**6,
        "nothing": b"",
    }
    answers = {name.replace(" ", "-").replace(",", ""): sends(part) for name, part in found.items()}
    for code in (301, 302, 303, 307, 308):
        answers[f"redirection-{code}-to-http"] = sends(leads(code, http))
    answers["endless"] = endless
    answers["silent-before-the-headers"] = sends(b"", whole(body), silence=10 * SILENCE)
    answers["silent-in-the-middle"] = sends(whole(half, length=len(body)), body[len(half) :], silence=10 * SILENCE)
    return answers


def fetched(folder: Path, url: str, body: bytes, content: str, silence: float = SILENCE) -> Path:
    """Fetch the archive as a data set does."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    opener = functools.partial(open_https, timeout=silence)
    return fetch_tree(folder, "set", url=url, md5=md5, content=content, max_bytes=MAX_BYTES, opener=opener)


def holds(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def attempt(folder: Path, made: Site, name: str, body: bytes, content: str) -> str:
    """Return what is wrong with how a bad answer is taken, and with the run after it ("" if nothing)."""
    for kind, before in {"new": {}, "damaged": {"set.zip": body[:-30]}}.items():
        place = folder / f"{name[:60]}-{kind}"
        for file, data in before.items():
            place.mkdir()
            (place / file).write_bytes(data)
        try:
            fetched(place, made.url(name), body, content)
        except DataError as error:
            if not (error.where and error.remedy):
                return f"no help: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        else:
            return "it was taken"
        if holds(place) != before:
            return f"left: {sorted(holds(place))}"
        fetched(place, made.url("good"), body, content)
        if holds(place) != {"set.zip": body}:
            return "the next run did not repair it"
    return ""


def killed(folder: Path, made: Site, body: bytes, content: str) -> str:
    """Return what is wrong after a process was killed in the middle of a download, and after the next run."""
    program = "import sys; from pathlib import Path; from tests.reliability.downloads import fetched\n"
    program += "fetched(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes(), sys.argv[4], 60)"
    place, copy = folder / "killed", folder / "body"
    copy.write_bytes(body)
    made.answers["slow"] = sends(whole(body[:600_000], length=len(body)), body[600_000:], silence=60)
    command = [sys.executable, "-c", program, str(place), made.url("slow"), str(copy), content]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not any(data for data in holds(place).values()) and time.monotonic() < until and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    said = child.communicate()[1]
    left = {name: len(data) for name, data in holds(place).items()}
    if "set.zip" in left or not any(left.values()):
        return f"left by the killed process: {left} {said[-300:]!r}"
    for path in place.iterdir():
        os.utime(path, (time.time() - 10**6,) * 2)
    fetched(place, made.url("good"), body, content)
    return "" if holds(place) == {"set.zip": body} else f"the next run leaves {sorted(holds(place))}"


@row(12, "downloads that break off, lie or lead elsewhere", goal="the next run repairs; 0 http downgrades")
def bad_downloads(room: Room, *, count: int = 1000, kill: bool = True) -> Measured:
    """Fetch a data set from a server of this machine that answers wrongly in every way, and then rightly."""
    body, faults = served_archive(), dict[str, str]()
    (room.folder / "served.zip").write_bytes(body)
    content = content_digest(ZipTree(room.folder / "served.zip"))
    with site(room.folder) as made:
        made.answers = bad_answers(made, body) | {"good": sends(whole(body)), "moved": sends(leads(302, "/good"))}
        fetched(room.folder / "moved", made.url("moved"), body, content)
        names = [name for name in made.answers if name not in ("good", "moved")][:count]
        tried = 0
        for index in room.counted(len(names)):
            tried += 1
            if fault := attempt(room.folder, made, names[index], body, content):
                faults[names[index]] = fault
        # Nobody vouches for the certificate; and a server that speaks no TLS at all.
        for what, change in {
            "unknown certificate": {"SSL_CERT_FILE": "/nonexistent"},
            "no TLS": {"port": made.plain_port},
        }.items():
            other = Site(int(change.get("port", made.port)), 0)
            with unittest.mock.patch.dict(os.environ, {k: str(v) for k, v in change.items() if k != "port"}):
                try:
                    fetched(room.folder / what, other.url("good"), body, content)
                    faults[what] = "it was taken"
                except DataError:
                    tried += not holds(room.folder / what)
        if kill:
            tried += 1
            if fault := killed(room.folder, made, body, content):
                faults["killed"] = fault
        plain = [line for line in made.plain if line.startswith(b"GET")]
    return Measured(
        tried == len(names) + 2 + kill and not faults and not plain,
        f"{tried} bad downloads: none taken, every next run repairs, {len(plain)} http downgrades",
        {"tried": tried, "http_downgrades": len(plain), "faults": faults},
    )
