"""Row 12: downloads that are cut off, send wrong content or redirect elsewhere, from local servers."""

from __future__ import annotations

import contextlib
import functools
import gzip
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
from tests.reliability.rows import Measured, Workspace, row

MAX_BYTES = 2**20
SILENCE = 0.4
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def served_archive() -> bytes:
    """Return the archive to fetch: images of noise, about 900 kB."""
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
    """An https server, whose `answers` map paths to functions that send, and an http server that logs its requests."""

    port: int
    plain_port: int
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    plain_requests: list[bytes] = field(default_factory=list)

    def url(self, path: str) -> str:
        """Return the https URL of a path."""
        return f"https://127.0.0.1:{self.port}/{path}"


def certificate(folder: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1; return the file that holds the certificate and its key."""
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
        """Print nothing: clients that close the connection are part of the test."""


class _Handler(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        """Wrap the connection in TLS if the server uses it."""
        context = getattr(self.server, "context", None)
        if context is not None:
            self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """Close the connection and its files, whether or not the client has closed it."""
        try:
            super().finish()
        finally:
            self.rfile.close()
            with contextlib.suppress(OSError, ValueError):
                self.wfile.close()
            self.request.close()

    def handle(self) -> None:
        """Read a request and send the answer for its path, without changes."""
        server: Any = self.server
        first = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        if server.context is None:
            server.site.plain_requests.append(first)
            self.wfile.write(HEAD + b"\r\nplain")
            return
        server.site.answers[first.split()[1].decode().strip("/")](self)
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.request.unwrap()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Run both servers, and make this process trust the certificate of the https server."""
    path = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with _Server(("127.0.0.1", 0), _Handler) as secure, _Server(("127.0.0.1", 0), _Handler) as insecure:
        secure.context = context
        site = Site(secure.server_address[1], insecure.server_address[1])
        secure.site = insecure.site = site
        for server in (secure, insecure):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with unittest.mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(folder / "public.pem"), "no_proxy": "*"}):
            yield site
        for server in (secure, insecure):
            server.shutdown()


def sending(*parts: bytes, silence: float = 0.0) -> Callable[[Any], None]:
    """Return a function that sends these parts, with `silence` seconds before each part but the first."""

    def send(handler: Any) -> None:
        for index, part in enumerate(parts):
            if index:
                handler.wfile.flush()
                time.sleep(silence)
            handler.wfile.write(part)

    return send


def response(body: bytes, *, length: bytes | int | None = None, more: bytes = b"") -> bytes:
    """Return a response with this body and its correct length, or with the stated length."""
    stated = str(len(body)).encode() if length is None else str(length).encode() if isinstance(length, int) else length
    return HEAD + b"Content-Length: " + stated + b"\r\n" + more + b"\r\n" + body


def redirect(code: int, location: str) -> bytes:
    """Return a response that redirects to a location."""
    return f"HTTP/1.1 {code} Moved\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()


def endless(handler: Any) -> None:
    """Send a response without a length that never ends."""
    handler.wfile.write(HEAD + b"\r\n")
    while True:
        handler.wfile.write(bytes(2**16))


def bad_answers(site: Site, body: bytes) -> dict[str, Callable[[Any], None]]:
    """Return every answer that must be refused, by its path."""
    http, html = f"http://127.0.0.1:{site.plain_port}/good", b"<html><body>rate limited</body></html>"
    half, wrong = body[: len(body) // 2], body[:500] + bytes([body[500] ^ 1]) + body[501:]
    responses = {
        "truncated": response(half, length=len(body)),
        "truncated, length unknown": HEAD + b"\r\n" + half,
        "truncated, length of the half": response(half),
        "wrong digest": response(wrong),
        "empty": response(b""),
        "additional bytes": response(body + b"more"),
        "HTML": response(html, more=b"Content-Type: text/html\r\n"),
        "404": b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "500": b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "redirect-loop": redirect(302, site.url("redirect-loop")),
        "redirection to a file": redirect(302, "file:///etc/passwd"),
        "redirection to ftp": redirect(302, "ftp://127.0.0.1/x"),
        "redirection to an address that is invalid": redirect(302, "https://[bad"),
        "redirection to a port that is invalid": redirect(302, "https://127.0.0.1:99999999/"),
        "redirection to a name that is invalid": redirect(302, f"https://{'a' * 300}.example/"),
        "too large": response(b"", length=2**40),
        "length of strange digits": response(wrong, length=b"\xb2"),
        "length of thousands of digits": response(wrong, length=b"9" * 5000),
        "negative length": response(wrong, length=b"-5"),
        "compressed by the server": response(gzip.compress(body), more=b"Content-Encoding: gzip\r\n"),
        "broken chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\n" + half,
        "not HTTP": b"\0\1\2\3 hello\r\n\r\n",
        "a thousand headers": HEAD + b"X-A: b\r\n" * 1000 + b"\r\n" + body,
        "endless header": HEAD + b"X: " + b"a" * 10**6,
        "nothing": b"",
    }
    answers = {name.replace(" ", "-").replace(",", ""): sending(part) for name, part in responses.items()}
    for code in (301, 302, 303, 307, 308):
        answers[f"redirection-{code}-to-http"] = sending(redirect(code, http))
    answers["endless"] = endless
    answers["silent-before-the-headers"] = sending(b"", response(body), silence=10 * SILENCE)
    answers["silent-in-the-middle"] = sending(response(half, length=len(body)), body[len(half) :], silence=10 * SILENCE)
    return answers


def fetch(folder: Path, url: str, body: bytes, content: str, silence: float = SILENCE) -> Path:
    """Fetch the archive as a data set plugin does."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    opener = functools.partial(open_https, timeout=silence)
    return fetch_tree(folder, "set", url=url, md5=md5, content=content, max_bytes=MAX_BYTES, opener=opener)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def fault_of(folder: Path, site: Site, name: str, body: bytes, content: str) -> str:
    """Return what is wrong with how a bad answer is handled and with the next fetch, or an empty string."""
    for kind, before in {"new": {}, "damaged": {"set.zip": body[:-30]}}.items():
        place = folder / f"{name[:60]}-{kind}"
        for file, data in before.items():
            place.mkdir()
            (place / file).write_bytes(data)
        try:
            fetch(place, site.url(name), body, content)
        except DataError as error:
            if not (error.where and error.remedy):
                return f"no remedy: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        else:
            return "it was accepted"
        if contents_of(place) != before:
            return f"left behind: {sorted(contents_of(place))}"
        fetch(place, site.url("good"), body, content)
        if contents_of(place) != {"set.zip": body}:
            return "the next fetch did not repair it"
    return ""


def fault_after_kill(folder: Path, site: Site, body: bytes, content: str) -> str:
    """Return what is wrong after a process was killed during a download, and after the next fetch."""
    program = "import sys; from pathlib import Path; from tests.reliability.downloads import fetch\n"
    program += "fetch(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes(), sys.argv[4], 60)"
    place, copy = folder / "killed", folder / "body"
    copy.write_bytes(body)
    site.answers["slow"] = sending(response(body[:600_000], length=len(body)), body[600_000:], silence=60)
    command = [sys.executable, "-c", program, str(place), site.url("slow"), str(copy), content]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not any(data for data in contents_of(place).values()) and time.monotonic() < until and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    output = child.communicate()[1]
    left = {name: len(data) for name, data in contents_of(place).items()}
    if "set.zip" in left or not any(left.values()):
        return f"left behind by the killed process: {left} {output[-300:]!r}"
    for path in place.iterdir():
        os.utime(path, (time.time() - 10**6,) * 2)
    fetch(place, site.url("good"), body, content)
    return "" if contents_of(place) == {"set.zip": body} else f"the next fetch leaves {sorted(contents_of(place))}"


@row(
    12,
    "downloads that are cut off, send wrong content or redirect elsewhere",
    goal="the next fetch repairs; 0 http downgrades",
)
def bad_downloads(workspace: Workspace, *, count: int = 1000, kill: bool = True) -> Measured:
    """Fetch a data set from a local server, first with each bad answer and then with the correct one."""
    body, faults = served_archive(), dict[str, str]()
    (workspace.folder / "served.zip").write_bytes(body)
    content = content_digest(ZipTree(workspace.folder / "served.zip"))
    with serve(workspace.folder) as site:
        site.answers = bad_answers(site, body) | {
            "good": sending(response(body)),
            "moved": sending(redirect(302, "/good")),
        }
        fetch(workspace.folder / "moved", site.url("moved"), body, content)
        names = [name for name in site.answers if name not in ("good", "moved")][:count]
        tried = 0
        for index in workspace.indices(len(names)):
            tried += 1
            if fault := fault_of(workspace.folder, site, names[index], body, content):
                faults[names[index]] = fault
        # A certificate that is not trusted, and a server without TLS.
        for what, change in {
            "unknown certificate": {"SSL_CERT_FILE": "/nonexistent"},
            "no TLS": {"port": site.plain_port},
        }.items():
            other = Site(int(change.get("port", site.port)), 0)
            with unittest.mock.patch.dict(os.environ, {k: str(v) for k, v in change.items() if k != "port"}):
                try:
                    fetch(workspace.folder / what, other.url("good"), body, content)
                    faults[what] = "it was accepted"
                except DataError:
                    tried += not contents_of(workspace.folder / what)
        if kill:
            tried += 1
            if fault := fault_after_kill(workspace.folder, site, body, content):
                faults["killed"] = fault
        plain_requests = [line for line in site.plain_requests if line.startswith(b"GET")]
    return Measured(
        tried == len(names) + 2 + kill and not faults and not plain_requests,
        f"{tried} bad downloads: none accepted, the next fetch repairs each, {len(plain_requests)} http downgrades",
        {"tried": tried, "http_downgrades": len(plain_requests), "faults": faults},
    )
