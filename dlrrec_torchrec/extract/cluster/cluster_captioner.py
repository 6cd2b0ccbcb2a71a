"""BLIP-2 with its batches described on a Ray cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlrrec_torchrec.extract.cluster.connection import RayCluster, same_folder, weight_bytes
from dlrrec_torchrec.extract.pictures.blip2 import DEFAULT_MODEL, SETTING, Blip2Captioner
from dlrrec_torchrec.extract.pictures.captions import Batches, Described, described
from dlrrec_torchrec.extract.pictures.opening import PictureError
from dlrrec_torchrec.store.errors import DataError


class ClusterCaptioner:
    """A captioner as of `pictures.captions.Captioner`, whose identity is that of `Blip2Captioner`.

    Files and links are opened, and scaled to what the model sees, on this machine alone; the actors get
    numbers, 600 KB a picture, and need neither the folder of pictures nor the internet.

    Args:
        cluster: connected while pictures are described.
        name: as of `Blip2Captioner`; a folder must be there under this path on all nodes.
    """

    def __init__(self, cluster: RayCluster, name: str = DEFAULT_MODEL):
        here = Blip2Captioner(name, cluster.device)
        self.identity, self._pixels, self._cluster = here.identity, here.pixels, cluster
        self._job = _Describing(same_folder(name), here.device, here.identity, weight_bytes(here.folder))

    def describe(self, batches: Batches, most: int) -> Described:
        with self._cluster.actors(self._job, most) as actors:
            yield from actors.map(self._pixels(pictures) for pictures in batches)

    def close(self) -> None:
        """The actors are gone already."""


@dataclasses.dataclass(frozen=True)
class _Describing:
    """What an actor does: the `pixels` of pictures into clean captions, the second try included."""

    model: str
    device: str
    identity: str
    weights: int
    name = SETTING

    def load(self) -> Callable[[list[np.ndarray]], list[str | PictureError]]:
        if Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise DataError(
                f"{SETTING} {self.model}: there is no such folder; all nodes must see it under this path, on "
                "storage that they share or as a copy; --engine local describes on this machine alone"
            )
        captioner = Blip2Captioner(self.model, self.device)
        if captioner.identity != self.identity:
            raise DataError(
                f"{SETTING} {self.model}: is another model ({captioner.identity}) than on the machine that "
                f"started the command ({self.identity}): put the same files on all"
            )
        captioner.load()
        return lambda pixels: described(captioner.words, pixels)
