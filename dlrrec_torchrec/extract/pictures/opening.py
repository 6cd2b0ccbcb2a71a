"""Pictures from files and links, within limits: reviews name them, so nothing that they say is trusted.

A file counts only inside the folder that the user names. A link is followed over HTTP or HTTPS alone, to
addresses of the public internet, and the connection goes to the very address that was checked: a name that
resolves differently a moment later changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from PIL import Image, ImageOps

from dlrrec_torchrec import __version__

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO")
_SCHEMES = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


class PictureError(Exception):
    """Why a picture cannot be had, in words."""


@dataclasses.dataclass(frozen=True)
class Opener:
    """Reads pictures.

    Attributes:
        folder: where relative paths begin, and outside which no file is read; None: no files at all.
        most_bytes: of a file.
        most_pixels: of a picture, once decoded.
        seconds: that a download may take, redirects included.
        redirects: that are followed.
        private: links may lead to addresses of this machine and its network.
    """

    folder: Path | None = None
    most_bytes: int = 20 << 20
    most_pixels: int = 64_000_000
    seconds: float = 20.0
    redirects: int = 3
    private: bool = False

    def read(self, source: str) -> bytes:
        """The file behind a path or link. Raises PictureError."""
        if "\0" in source or not source.strip():
            raise PictureError("no path or link")
        return self._download(source) if "://" in source else self._file(source)

    def decode(self, data: bytes) -> Image.Image:
        """An RGB picture, turned upright; of an animation the first frame. Raises PictureError."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > self.most_pixels:
                    raise PictureError(
                        f"{picture.width:,} x {picture.height:,} is more than {self.most_pixels:,} pixels"
                    )
                return ImageOps.exif_transpose(picture).convert("RGB")
        except PictureError:
            raise
        except Exception as error:  # decoders of damaged files raise anything
            raise PictureError(f"no picture that can be decoded ({type(error).__name__})") from None

    def _file(self, source: str) -> bytes:
        if self.folder is None:
            raise PictureError("a file, but no folder of pictures is named")
        try:
            root = self.folder.resolve()
            path = (root / source).resolve()  # of links in the file system, where they lead
            if not path.is_relative_to(root):
                raise PictureError("outside the folder of pictures")
            if not path.is_file():
                raise PictureError("no such file" if not path.exists() else "no file")
            with open(path, "rb") as stream:
                data = stream.read(self.most_bytes + 1)
        except (OSError, ValueError, RuntimeError) as error:
            raise PictureError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
        return self._checked(data)

    def _checked(self, data: bytes) -> bytes:
        if len(data) > self.most_bytes:
            raise PictureError(f"larger than {self.most_bytes:,} bytes")
        if not data:
            raise PictureError("empty")
        return data

    def _download(self, source: str) -> bytes:
        deadline = time.monotonic() + self.seconds
        for _ in range(self.redirects + 1):
            try:
                target = self._get(source, deadline)
            except (OSError, ValueError, http.client.HTTPException) as error:
                late = isinstance(error, TimeoutError) or time.monotonic() > deadline
                why = f"not there within {self.seconds:g} seconds" if late else _plain(error)
                raise PictureError(why) from None
            if isinstance(target, bytes):
                return self._checked(target)
            source = target
        raise PictureError(f"more than {self.redirects} redirects")

    def _get(self, url: str, deadline: float) -> bytes | str:
        """What is behind a link, or the link that it redirects to."""
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise PictureError("a link of another kind than http and https")
        if parts.username or parts.password:
            raise PictureError("a link with a user's name")
        connection = self._connected(parts, deadline)
        # A time-out of the socket begins anew with every byte; this ends all of it.
        alarm = threading.Timer(_left(deadline), _shut, (connection.sock,))
        alarm.daemon = True
        alarm.start()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            agent = {"User-Agent": f"dlrrec-torchrec/{__version__}", "Accept": "image/*"}
            connection.request("GET", _escaped(path), headers=agent | {"Accept-Encoding": "identity"})
            response = connection.getresponse()
            _left(deadline)  # headers that the alarm cut off look like few headers
            if response.status in _REDIRECTS and (target := response.headers.get("Location")):
                return urljoin(url, target)
            if response.status != 200:
                raise PictureError(f"the server says {response.status}")
            kind = (response.headers.get("Content-Type") or "").lower()
            if not kind.startswith(_TYPES):
                raise PictureError(f"of type '{kind.split(';')[0][:60]}', not a picture")
            return self._body(response, deadline)
        finally:
            alarm.cancel()
            connection.close()

    def _connected(self, parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
        port = parts.port or _SCHEMES[parts.scheme]
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise PictureError("a link to a host that is not known") from None
        addresses = [entry[4][0] for entry in found]
        if not self.private and (bad := [a for a in addresses if not _public(a)]):
            raise PictureError(f"a link to {bad[0]}, which is not on the public internet")
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = socket.create_connection((addresses[0], port), _left(deadline))
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        return connection

    def _body(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        said = response.headers.get("Content-Length", "")
        if said.isdecimal() and int(said) > self.most_bytes:
            raise PictureError(f"larger than {self.most_bytes:,} bytes")
        chunks, size = [], 0
        while size <= self.most_bytes and (chunk := response.read1(_CHUNK)):
            chunks.append(chunk)
            size += len(chunk)
        _left(deadline)
        if said.isdecimal() and size < int(said):
            raise PictureError("the server sent less than it said")
        return b"".join(chunks)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _public(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or mapped.is_global)


def _escaped(path: str) -> str:
    """A path with what HTTP forbids in a request line escaped, and what is escaped left alone."""
    return quote(path, safe="/%?&=+,;:@!$'()*~-._")


def _plain(error: Exception) -> str:
    return f"cannot be loaded ({' '.join(str(getattr(error, 'strerror', None) or error).split())[:120]})"
