"""The captions of documents: those that the source gave, and those that a captioner writes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import LlmConfig, PicturesConfig
from dlrrec_torchrec.extract.cluster.connection import RayCluster
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.extract.pictures.captions import SAYS_NOTHING, Captioned, Captioner, caption_pictures
from dlrrec_torchrec.extract.pictures.opening import Opener
from dlrrec_torchrec.extract.sentences import clean_caption
from dlrrec_torchrec.extract.strings import Strings
from dlrrec_torchrec.store.errors import DataError, Unfinished
from dlrrec_torchrec.store.files import write_table

Listed = list[str] | None  # of one document, from its row

# One row a picture: what it was found to be, by whom; `problem` says why there is no caption.
PICTURES = pa.schema(
    [
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("caption", pa.string()),
        ("problem", pa.string()),
        ("captioner", pa.string()),
    ]
)
_TOLD = 3  # problems on the terminal


class PictureWords:
    """Captions of documents, as clean text.

    Args:
        settings: of pictures.
        captioner: as `make_captioner` makes it; None: only given captions count.
        folder: of relative paths, where `settings` name none.
        cache_dir: of captions.sqlite.

    Attributes:
        makes, way_out: what is made of a picture, and the setting that does without, for messages.
    """

    makes, way_out = "caption", "--captioner none"
    embed: Callable[[Strings, Path], np.ndarray] | None = None  # what is made of a picture: as other texts

    def __init__(
        self, settings: PicturesConfig, captioner: Captioner | None, folder: Path | None, cache_dir: Path
    ):
        named = settings.picture_folder
        if named and not Path(named).is_dir():
            raise DataError(f"pictures.picture_folder (--picture-folder) {named}: there is no such folder")
        self._opener = Opener(
            Path(named) if named else folder,
            most_bytes=settings.picture_mib << 20,
            seconds=settings.picture_seconds,
            private=settings.private_links,
        )
        self._batch, self.captioner, self.cache_dir = settings.picture_batch, captioner, cache_dir
        self.found: dict[str, Captioned] = {}
        self._without = 0  # documents with pictures that nobody describes

    def look(self, batches: Iterable[tuple[list[Listed], list[Listed]]]) -> None:
        """Let the captioner describe the pictures of documents that are to come.

        Args:
            batches: arguments of calls.

        Raises DataError where none of the pictures can be read.
        """
        if self.captioner is None:
            return
        sources: dict[str, None] = {}
        for batch in batches:
            for document in zip(*batch, strict=True):
                sources |= dict.fromkeys(self._wanted(*document))
        if sources:
            self._describe(list(sources))

    def _wanted(self, captions: Listed, pictures: Listed) -> list[str]:
        """The pictures of a document that the captioner is to describe."""
        return _undescribed(captions, pictures)

    def __call__(self, captions: list[Listed], pictures: list[Listed]) -> list[list[str]]:
        """The captions of each document that say anything; `look` has seen them.

        Args:
            captions: as given, one a picture, "" where it has none; pictures: paths or links.
        """
        missing = [_undescribed(*document) for document in zip(captions, pictures, strict=True)]
        if self.captioner is None:
            self._without += sum(map(bool, missing))
        return [
            [text for text in map(clean_caption, given or []) if text]
            + [found.caption for source in more if (found := self.found.get(source)) and found.caption]
            for given, more in zip(captions, missing, strict=True)
        ]

    def record(self, folder: Path) -> dict[str, Any]:
        """Write what became of the pictures to `folder`; return facts for the manifest, {} without any."""
        if self._without:
            print(
                f"extract: {self._without:,} reviews or items have pictures without captions, which no model "
                "sees; --captioner blip2 puts them into words",
                file=sys.stderr,
            )
            return {"without_captions": self._without}
        if not self.found:
            return {}
        rows = [
            {"source": source, "captioner": self.captioner.identity}
            | {name: getattr(found, name) or None for name in ("sha256", "caption", "problem")}
            for source, found in self.found.items()
        ]
        write_table(pa.Table.from_pylist(rows, schema=PICTURES), folder)
        problems = Counter(row["problem"] for row in rows if row["problem"])
        if problems:
            print(
                f"extract: {problems.total():,} of {len(rows):,} pictures have no {self.makes}: "
                f"{_few(problems)}; content/pictures names them; without the folder content, extract tries "
                "those again that could not be read",
                file=sys.stderr,
            )
        facts = {"described": len(rows) - problems.total(), "problems": dict(problems.most_common())}
        budget = getattr(self.captioner, "budget", None)
        return facts | (budget.facts if budget else {})

    def _describe(self, sources: list[str]) -> None:
        store = CaptionStore(self.cache_dir)
        try:
            found = caption_pictures(sources, self._opener, self.captioner, store, self._batch)
        finally:
            store.close()
            self.captioner.close()
        if not any(picture.sha256 for picture in found.values()):
            problems = Counter(picture.problem for picture in found.values())
            source = next(iter(found))
            raise DataError(
                f"pictures: none of {len(found):,} pictures could be read, as '{source:.80}': "
                f"{_few(problems)}; --picture-folder names the folder where paths begin, --private-links "
                f"allows links within this network, {self.way_out} goes on without them"
            )
        if not any(picture.problem in ("", SAYS_NOTHING) for picture in found.values()):
            problems = Counter(picture.problem for picture in found.values() if picture.sha256)
            raise Unfinished(
                f"pictures: none of {len(found):,} was described: {_few(problems)}; the same command "
                f"tries again, {self.way_out} goes on without them"
            )
        self.found |= found


def _undescribed(captions: Listed, pictures: Listed) -> list[str]:
    """The pictures of a document that have no caption; of given ones, as many as pictures, the empty ones."""
    if not captions:
        return pictures or []
    if len(captions) != len(pictures or []):
        return []
    return [source for source, given in zip(pictures, captions, strict=True) if not clean_caption(given)]


def _few(problems: Counter[str]) -> str:
    told = [f"{problem} ({number:,})" for problem, number in problems.most_common(_TOLD)]
    return "; ".join(told + ["and others"] * (len(problems) > _TOLD))


def make_captioner(
    settings: PicturesConfig, llm: LlmConfig, cluster: RayCluster | None = None
) -> Captioner | None:
    """The captioner that the settings name; `cluster`: where BLIP-2 works.

    Raises DataError where it cannot be had.
    """
    if settings.captioner == "blip2" and cluster is not None:
        from dlrrec_torchrec.extract.cluster.cluster_captioner import ClusterCaptioner

        return ClusterCaptioner(cluster, settings.captioner_model)
    if settings.captioner == "blip2":
        from dlrrec_torchrec.extract.pictures.blip2 import Blip2Captioner

        return Blip2Captioner(settings.captioner_model)
    if settings.captioner == "vision":
        from dlrrec_torchrec.extract.pictures.vision import VisionCaptioner

        return VisionCaptioner(llm)
    return None
