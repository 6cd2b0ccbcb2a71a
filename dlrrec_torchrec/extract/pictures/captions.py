"""Pictures into captions or vectors: opened, described in batches, remembered by what they show."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.extract.pictures.opening import Opener, PictureError
from dlrrec_torchrec.extract.sentences import clean_caption
from dlrrec_torchrec.store.progress import track

_READERS = 8  # pictures that are read or downloaded at a time
T = TypeVar("T")
SAYS_NOTHING = "no caption that says anything, tried twice"


Batches = Iterable[list[Image.Image]]
Described = Iterator[tuple[int, list[str | bytes | PictureError]]]


class Captioner(Protocol):
    """Pictures to words, or to the bytes of vectors. `identity` changes whenever these could."""

    identity: str

    def describe(self, batches: Batches, most: int) -> Described:
        """Yield (number of a batch, clean captions of its pictures) until all are described, in any order.

        A caption is "" where the picture was tried twice and says nothing, and a PictureError where there is
        none this time. `most`: batches, at most. Each is taken when it can be worked on.
        """
        ...

    def close(self) -> None:
        """After the last picture."""
        ...


@dataclasses.dataclass(frozen=True)
class Captioned:
    """What became of a picture: `caption`, clean, or "" and the `problem` in words.

    Without either, a vector was made of it, which is in the store.
    """

    caption: str
    problem: str = ""
    sha256: str = ""  # of the file; "" where it could not be read


def caption_pictures(
    sources: Iterable[str], opener: Opener, captioner: Captioner, store: CaptionStore, batch: int
) -> dict[str, Captioned]:
    """What became of each distinct path or link.

    A picture that was described before, by this captioner, is neither opened nor described again: a file as
    long as its size and time are the same, a link always, and any two sources with the same bytes. What could
    not be read is tried again in the next call. Memory: a few batches of pictures.

    Args:
        batch: pictures described at once.
    """
    wanted = list(dict.fromkeys(sources))
    found: dict[str, Captioned] = {}
    for source in wanted:
        if known := store.of_source(captioner.identity, _source_key(source, opener)):
            found[source] = _made(*known)
    missing = [source for source in wanted if source not in found]
    taken: list[list[str]] = []  # SHA-256 of the pictures of each batch
    sources_of: dict[str, list[str]] = {}  # of pictures not described yet

    def batches() -> Iterator[list[Image.Image]]:
        waiting: dict[str, Image.Image] = {}
        for source, read in track(_read(missing, opener), "pictures", len(missing)):
            if isinstance(read, PictureError):
                found[source] = Captioned("", str(read))
                continue
            sha, picture = read
            store.put_source(_source_key(source, opener), sha)
            if sha in sources_of:
                sources_of[sha].append(source)
                continue
            if (caption := store.of_picture(captioner.identity, sha)) is not None:
                found[source] = _made(sha, caption)
                continue
            waiting[sha], sources_of[sha] = picture, [source]
            if len(waiting) == batch:
                taken.append(list(waiting))
                yield list(waiting.values())
                waiting = {}
        if waiting:
            taken.append(list(waiting))
            yield list(waiting.values())

    with contextlib.closing(batches()) as work:
        for number, captions in captioner.describe(work, -(-len(missing) // batch)):
            for sha, caption in zip(taken[number], captions, strict=True):
                if isinstance(caption, PictureError):
                    made = Captioned("", str(caption), sha)
                else:
                    store.put(captioner.identity, sha, caption)
                    made = _made(sha, caption)
                for source in sources_of.pop(sha):
                    found[source] = made
    return {source: found[source] for source in wanted}


def _made(sha: str, caption: str | bytes) -> Captioned:
    if isinstance(caption, bytes):
        return Captioned("", sha256=sha)
    return Captioned(caption, "" if caption else SAYS_NOTHING, sha)


def described(ask: Callable[[list[T], bool], list[str | PictureError]], pictures: list[T]) -> list:
    """Clean captions; those that say nothing ("a photo of a") are asked for once more, with True."""
    captions = [_words(caption) for caption in ask(pictures, False)]
    if empty := [number for number, caption in enumerate(captions) if not caption]:
        second = ask([pictures[number] for number in empty], True)
        for number, caption in zip(empty, second, strict=True):
            captions[number] = _words(caption)
    return captions


def describe_here(ask: Callable[..., list[str | PictureError]], batches: Batches) -> Described:
    """`Captioner.describe`, one batch after the other, by `ask` as `described` takes it."""
    for number, pictures in enumerate(batches):
        yield number, described(ask, pictures)


def _words(caption: str | PictureError) -> str | PictureError:
    """A clean caption; "" where it repeats one word or two over and over."""
    if isinstance(caption, PictureError):
        return caption
    text = clean_caption("".join(c if c.isprintable() else " " for c in caption))
    words = text.lower().split()
    repeats = len(words) >= 4 and len(set(words)) <= 2
    return "" if repeats else text


def _read(sources: list[str], opener: Opener) -> Iterator[tuple[str, tuple[str, Image.Image] | PictureError]]:
    """Each source in order, with its SHA-256 and picture, or why it cannot be had; read ahead by threads."""

    def one(source: str) -> tuple[str, Image.Image] | PictureError:
        try:
            data = opener.read(source)
            return hashlib.sha256(data).hexdigest(), opener.decode(data)
        except PictureError as error:
            return error

    ahead: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for source in sources:
                ahead.append((source, pool.submit(one, source)))
                if len(ahead) > 2 * _READERS:
                    first, read = ahead.popleft()
                    yield first, read.result()
            while ahead:
                first, read = ahead.popleft()
                yield first, read.result()
        finally:  # an error or Ctrl-C does not wait for downloads that nobody will use
            for _, read in ahead:
                read.cancel()


def _source_key(source: str, opener: Opener) -> str:
    """What names the same picture as long as it is the same: a link, or a file's path, size and time."""
    if "://" in source or opener.folder is None:
        return source
    path = Path(opener.folder, source)
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return source
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
