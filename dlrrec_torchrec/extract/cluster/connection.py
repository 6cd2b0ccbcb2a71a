"""The Ray cluster on which texts are embedded and pictures described. Ray is imported where it is used."""

from __future__ import annotations

import logging
import os
import socket
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrrec_torchrec.extract.encoder import torch_device
from dlrrec_torchrec.store.errors import DataError

if TYPE_CHECKING:
    from dlrrec_torchrec.extract.cluster.actors import Actors, Job

_SETTING = "extract.address (--address)"
_CONNECT_SECONDS = 20
_STORE = 256 << 20  # bytes of objects on a cluster started here: a few batches for each actor


class RayCluster:
    """The cluster at `address`; a context, at whose end the connection ends that the first actors needed.
    Without an address: that of RAY_ADDRESS, else one that is started on this machine and ends likewise.

    A process that is connected already stays so. `way_out`: what else would do, for errors.

    Raises DataError where Ray is missing, and where nobody answers at the address.
    """

    def __init__(self, address: str = "", way_out: str = "--engine local works on this machine alone"):
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise DataError(
                f"a Ray cluster needs Ray: pip install 'dlrrec-torchrec[ray]'; {way_out}"
            ) from None
        self.address = address or os.environ.get("RAY_ADDRESS", "")
        self.way_out = way_out
        _check_address(self.address, way_out)
        self._connected_here = False

    @cached_property
    def device(self) -> str:
        """The torch device of the actors: "cuda" where the cluster has GPUs and this torch can use them."""
        if not self.address:
            return torch_device()
        able = not version("torch").endswith("+cpu")  # as on the nodes: all have the same torch
        return "cuda" if able and any(node.get("GPU") for node in self.resources()) else "cpu"

    def actors(self, job: Job, most: int) -> Actors:
        """A context with up to `most` actors that do `job`, as many as there is room for."""
        from dlrrec_torchrec.extract.cluster.actors import Actors

        device = self.device
        self.connect()
        return Actors(job, device, most)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected_here:
            import ray

            ray.shutdown()
            self._connected_here = False

    def connect(self) -> None:
        """Connect, unless that was done. Raises DataError where it cannot be done."""
        import ray

        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address:
                ray.init(self.address, **quiet)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cores = len(os.sched_getaffinity(0))
                quiet |= {"include_dashboard": False, "object_store_memory": _STORE}
                ray.init("local", num_cpus=cores, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            where = (
                f"the Ray cluster at {self.address} cannot be reached" if self.address else "no Ray starts"
            )
            raise DataError(f"{_SETTING}: {where}: {error}; {self.way_out}") from None
        self._connected_here = True

    def resources(self) -> list[dict[str, float]]:
        """Of each node, as "CPU", "GPU" and "memory" (bytes)."""
        import ray

        with self:
            self.connect()
            return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _check_address(address: str, way_out: str) -> None:
    """Raise DataError, at once, for an address where nobody answers: Ray itself would try for minutes."""
    if "://" in address:
        raise DataError(
            f"{_SETTING} {address}: Ray Client cannot do this; start the command on a machine of the "
            "cluster, with its address as HOST:PORT, or auto"
        )
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(
                f"{_SETTING} {address}: no Ray cluster can be reached there ({error}); {way_out}"
            ) from None


def same_folder(name: str) -> str:
    """A folder's path as all machines know it; the name of a model, which each looks up, stays."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights in a model's folder; of two forms, the larger."""
    return max(sum(path.stat().st_size for path in folder.rglob(kind)) for kind in ("*.safetensors", "*.bin"))
