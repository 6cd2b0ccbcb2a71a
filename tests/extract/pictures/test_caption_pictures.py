"""From paths and links to captions: what is described, remembered, and said of what is not."""

import hashlib
import io
import multiprocessing
import os
import signal
import time

import pytest
from PIL import Image

from dlrrec_torchrec.extract.pictures import captions as captions_module
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.extract.pictures.captions import SAYS_NOTHING, caption_pictures, describe_here
from dlrrec_torchrec.extract.pictures.opening import Opener, PictureError
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.pictures import picture


class Colours:
    """Says the colour of the first point; nothing, the first time, of a dark one; nothing at all of black."""

    identity = "colours"

    def __init__(self, pause=0.0):
        self.calls, self.pause = [], pause

    def close(self):
        pass

    def describe(self, batches, most):
        return describe_here(self.captions, batches)

    def captions(self, pictures, again=False):
        time.sleep(self.pause)
        self.calls.append((len(pictures), again))
        found = []
        for image in pictures:
            red = image.getpixel((0, 0))[0]
            silent = red == 0 or (red < 50 and not again)
            found.append("a photo of a" if silent else f"a photo of red {red}")
        return found


def write(folder, name, red):
    Image.new("RGB", (4, 4), (red, 1, 2)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(9):
        write(root, f"{number}.png", 100 + number)
    return root


def test_every_picture_is_described_once(folder, tmp_path):
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    names = [f"{n}.png" for n in (4, 3, 4, 0, 8)] + ["copy.png"]
    told = Colours()
    found = caption_pictures(names, Opener(folder), told, CaptionStore(tmp_path), batch=2)
    assert list(found) == ["4.png", "3.png", "0.png", "8.png", "copy.png"]
    assert {name: c.caption for name, c in found.items()} == {
        "4.png": "red 104",
        "3.png": "red 103",
        "0.png": "red 100",
        "8.png": "red 108",
        "copy.png": "red 103",
    }
    assert sum(size for size, _ in told.calls) == 4 and max(told.calls)[0] == 2
    data = (folder / "3.png").read_bytes()
    assert found["copy.png"].sha256 == found["3.png"].sha256 == hashlib.sha256(data).hexdigest()


def test_a_caption_that_says_nothing_is_tried_once_more(folder, tmp_path):
    write(folder, "dark.png", 20)
    write(folder, "black.png", 0)
    told, store = Colours(), CaptionStore(tmp_path)
    names = ["1.png", "dark.png", "black.png"]
    found = caption_pictures(names, Opener(folder), told, store, batch=8)
    assert told.calls == [(3, False), (2, True)]
    assert found["dark.png"].caption == "red 20" and not found["dark.png"].problem
    assert found["black.png"].caption == "" and found["black.png"].problem == SAYS_NOTHING
    assert caption_pictures(names, Opener(folder), told, store, batch=8) == found
    assert len(told.calls) == 2  # what says nothing is remembered too


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("food food food food", ""),
        ("a photo of the", ""),
        ("there is a view of", ""),
        ("pie pie", "pie pie"),
        (" . ", ""),
        ("A photo of a pie on a table", "a pie on a table"),
    ],
)
def test_words_that_repeat_are_no_caption(said, kept):
    assert captions_module._words(said) == kept


def test_what_cannot_be_read_is_told_and_tried_again(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no picture")
    names = ["broken.png", "../out.png", "later.png", "2.png"]
    store = CaptionStore(tmp_path)
    found = caption_pictures(names, Opener(folder), Colours(), store, batch=8)
    assert found["2.png"].caption == "red 102"
    assert "no picture that can be decoded" in found["broken.png"].problem
    assert (
        "outside the folder" in found["../out.png"].problem and "no such file" in found["later.png"].problem
    )
    write(folder, "later.png", 77)
    write(folder, "broken.png", 78)
    found = caption_pictures(names, Opener(folder), Colours(), store, batch=8)
    assert [found[n].caption for n in names] == ["red 78", "", "red 77", "red 102"]


def test_a_changed_file_is_described_again_and_an_unchanged_link_is_not(folder, tmp_path, monkeypatch):
    store, told = CaptionStore(tmp_path), Colours()
    caption_pictures(["1.png"], Opener(folder), told, store, 4)
    write(folder, "1.png", 200)
    os.utime(folder / "1.png", ns=(1, 1))
    assert caption_pictures(["1.png"], Opener(folder), told, store, 4)["1.png"].caption == "red 200"
    read = []

    def download(self, source):
        read.append(source)
        return (folder / "5.png").read_bytes()

    monkeypatch.setattr(Opener, "read", download)
    link = "https://pictures.example/5.png"
    for _ in range(2):
        assert caption_pictures([link], Opener(), told, store, 4)[link].caption == "red 105"
    assert read == [link]


def test_captioners_do_not_mix(folder, tmp_path):
    store, other = CaptionStore(tmp_path), Colours()
    other.identity = "others"
    caption_pictures(["1.png"], Opener(folder), Colours(), store, 4)
    caption_pictures(["1.png"], Opener(folder), other, store, 4)
    assert other.calls == [(1, False)]


def test_pictures_are_read_ahead_but_not_all_at_once(folder, tmp_path, monkeypatch):
    """However many there are, only so many wait in memory."""
    opened, described, most = [0], [0], [0]
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")

    def read(self, source):
        opened[0] += 1
        most[0] = max(most[0], opened[0] - described[0])
        return stream.getvalue() + source.encode()  # other bytes, so each is described

    class Counting(Colours):
        def captions(self, pictures, again=False):
            time.sleep(0.002)
            described[0] += len(pictures)
            return ["x y z"] * len(pictures)

    monkeypatch.setattr(Opener, "read", read)
    caption_pictures(
        [f"{n}" for n in range(300)], Opener(folder), Counting(), CaptionStore(tmp_path), batch=8
    )
    assert opened[0] == described[0] == 300 and most[0] <= 3 * captions_module._READERS + 8


def work(folder, cache, pause, done):
    told = Colours(pause)
    names = [f"{n}.png" for n in range(9)]
    found = caption_pictures(names, Opener(folder), told, CaptionStore(cache), batch=1)
    done.put(([found[n].caption for n in names], len(told.calls)))


def test_a_killed_run_goes_on_and_two_at_once_agree(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    killed = context.Process(target=work, args=(folder, tmp_path, 0.1, done))
    killed.start()
    store = CaptionStore(tmp_path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (kept,) = store._connection.execute("SELECT count(*) FROM captions").fetchone()
        if kept >= 3:
            break
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    (kept,) = store._connection.execute("SELECT count(*) FROM captions").fetchone()
    store.close()
    assert 3 <= kept < 9
    expected = [f"red {100 + n}" for n in range(9)]
    both = [context.Process(target=work, args=(folder, tmp_path, 0.0, done)) for _ in range(2)]
    for process in both:
        process.start()
    found = [done.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    assert [captions for captions, _ in found] == [expected, expected]
    assert all(calls <= 9 - kept for _, calls in found)


def test_a_damaged_store_says_what_to_do(tmp_path):
    (tmp_path / "captions.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="captions.sqlite: captions cannot be read .* move it away"):
        CaptionStore(tmp_path)


def test_an_error_of_the_captioner_stops_at_once(folder, tmp_path):
    class Failing(Colours):
        def captions(self, pictures, again=False):
            raise DataError("no memory")

    with pytest.raises(DataError, match="no memory"):
        caption_pictures([f"{n}.png" for n in range(9)], Opener(folder), Failing(), CaptionStore(tmp_path), 2)


def test_problems_are_exceptions_of_their_own():
    assert not issubclass(PictureError, DataError)  # one bad picture ends no run
