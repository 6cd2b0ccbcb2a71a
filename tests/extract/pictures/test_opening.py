"""Pictures behind paths and links: what is read, and what is refused."""

import http.server
import io
import os
import socket
import threading
import time

import pytest
from PIL import Image

from dlrrec_torchrec.extract.pictures import opening
from dlrrec_torchrec.extract.pictures.opening import Opener, PictureError


def png(width=8, height=6, color="red", form="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    return root


class Pages(http.server.BaseHTTPRequestHandler):
    """/picture, /to/PATH redirects, /loop, /page, /long, /lies, /slow, /gone."""

    def do_GET(self):
        body, kind, status, more = png(), "image/png", 200, {}
        if self.path.startswith("/to/"):
            status, more, body = 302, {"Location": self.path[3:]}, b""
        elif self.path.startswith("/outside"):
            status, more, body = 302, {"Location": "file:///etc/passwd"}, b""
        elif self.path == "/loop":
            status, more, body = 301, {"Location": "/loop"}, b""
        elif self.path == "/page":
            kind = "text/html; charset=utf-8"
        elif self.path == "/long":
            more["Content-Length"] = str(10**9)
        elif self.path == "/endless":
            body = b"x" * 5000
        elif self.path == "/lies":
            more["Content-Length"] = str(len(body) + 50)
        elif self.path == "/gone":
            status = 404
        elif self.path == "/damaged":
            body = body[:30]
        if self.path == "/headers":
            for number in range(40):
                time.sleep(0.1)
                try:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" if not number else b"X: y\r\n")
                except OSError:
                    return
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path == "/slow":
            for byte in body:
                time.sleep(0.05)
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_files_are_read_inside_the_folder_alone(folder):
    opener = Opener(folder)
    assert opener.decode(opener.read("sub/a.png")).size == (8, 6)
    assert opener.read(str(folder / "sub" / "a.png")) == png()
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "inside.png").symlink_to(folder / "sub" / "a.png")
    assert opener.read("inside.png") == png()
    for outside in ("../secret.png", "link.png", str(folder.parent / "secret.png"), "sub/../../secret.png"):
        with pytest.raises(PictureError, match="outside the folder"):
            opener.read(outside)
    for source, words in (
        ("sub", "no file"),
        ("none.png", "no such file"),
        ("", "no path"),
        ("a\0b", "no path"),
    ):
        with pytest.raises(PictureError, match=words):
            opener.read(source)
    with pytest.raises(PictureError, match="no folder of pictures is named"):
        Opener().read("sub/a.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.raises(PictureError):
        opener.read("loop.png")
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    with pytest.raises(PictureError, match="no file"):
        opener.read("pipe.png")


def test_files_beyond_the_limits_are_refused(folder):
    with pytest.raises(PictureError, match="larger than 20 bytes"):
        Opener(folder, most_bytes=20).read("sub/a.png")
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(PictureError, match="empty"):
        Opener(folder).read("empty.png")
    with pytest.raises(PictureError, match="8 x 6 is more than 40 pixels"):
        Opener(folder, most_pixels=40).decode(png())


@pytest.mark.parametrize(
    "data", [b"no picture", png()[:40], b"<svg/>", b"%PDF-1.4", png()[:8] + b"\xff" * 90]
)
def test_what_is_no_picture_says_so(data):
    with pytest.raises(PictureError, match="no picture that can be decoded"):
        Opener().decode(data)


def test_pictures_come_out_as_rgb_and_upright():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("L", (8, 6)).save(stream, "JPEG", exif=exif)
    picture = Opener().decode(stream.getvalue())
    assert picture.mode == "RGB" and picture.size == (6, 8)
    frames = [Image.new("P", (5, 5), n) for n in (1, 2)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert Opener().decode(stream.getvalue()).size == (5, 5)


def test_links_are_followed(site):
    opener = Opener(private=True)
    for path in ("/picture", "/to/picture", "/to/to/to/picture"):
        assert opener.read(site + path) == png()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/loop", "more than 3 redirects"),
        ("/to/to/to/to/picture", "more than 3 redirects"),
        ("/outside", "another kind than http"),
        ("/page", "of type 'text/html'"),
        ("/long", "larger than 3,000 bytes"),
        ("/endless", "larger than 3,000 bytes"),
        ("/lies", "less than it said"),
        ("/gone", "the server says 404"),
    ],
)
def test_links_that_bring_no_picture_say_why(site, path, words):
    with pytest.raises(PictureError, match=words):
        Opener(private=True, most_bytes=3000).read(site + path)


@pytest.mark.parametrize("path", ["/slow", "/headers"])
def test_a_server_that_trickles_is_left(site, path):
    began = time.monotonic()
    with pytest.raises(PictureError, match="not there within 0.5 seconds"):
        Opener(private=True, seconds=0.5).read(site + path)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://10.0.0.1/a.png",
        "http://192.168.1.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://2130706433/a.png",
        "http://0/a.png",
        "http://100.64.0.1/a.png",
        "http://224.0.0.1/a.png",
    ],
)
def test_addresses_of_this_network_are_refused(link):
    with pytest.raises(PictureError, match="not on the public internet|not known"):
        Opener(seconds=2).read(link)


def test_a_redirect_to_this_network_is_refused(site, monkeypatch):
    """The first address counts as public, the one that it redirects to does not."""
    checked = []

    def public(address):
        checked.append(address)
        return len(checked) == 1

    monkeypatch.setattr(opening, "_public", public)
    with pytest.raises(PictureError, match="not on the public internet"):
        Opener().read(site + "/to/picture")
    assert len(checked) == 2


def test_the_connection_goes_to_the_address_that_was_checked(site, monkeypatch):
    """A name that resolves to another address the second time is asked for once."""
    asked = []

    def resolve(host, port, **_):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.9.9.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(opening.socket, "getaddrinfo", resolve)
    port = site.rsplit(":", 1)[1]
    connected = []
    real = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda s, a: (connected.append(a), real(s, a))[1])
    monkeypatch.setattr(opening.socket, "create_connection", direct)
    assert Opener(private=True).read(f"http://pictures.example:{port}/picture") == png()
    assert asked == ["pictures.example"] and connected == [("127.0.0.1", int(port))]


def direct(address, timeout):
    """As socket.create_connection, which would ask for the name again."""
    made = socket.socket()
    made.settimeout(timeout)
    made.connect(address)
    return made


@pytest.mark.parametrize("link", ["ftp://example.com/a.png", "file:///etc/passwd", "http:///a.png"])
def test_other_kinds_of_link_are_refused(link):
    with pytest.raises(PictureError, match="another kind"):
        Opener(private=True).read(link)


def test_names_and_passwords_in_links_are_refused(site):
    with pytest.raises(PictureError, match="user's name"):
        Opener(private=True).read(site.replace("http://", "http://me:secret@") + "/picture")


def test_odd_characters_of_a_link_reach_no_header(site):
    for path in ("/picture?a=b c", "/picture?x=\r\nHost: evil", "/picture?ü=1"):
        try:
            assert Opener(private=True).read(site + path) == png()
        except PictureError as error:
            assert "cannot be loaded" in str(error) or "404" in str(error)
