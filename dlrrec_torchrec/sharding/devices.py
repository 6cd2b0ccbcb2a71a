"""The devices that store tables: named ones by their makers' figures, and the present one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.planner import Topology

from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.store.errors import DataError

GB = 10**9  # makers count memory and bandwidth in decimal units


@dataclasses.dataclass(frozen=True)
class Device:
    """What one rank has: bytes of memory, and bytes/s of bandwidth, in one direction."""

    name: str
    hbm: int  # device memory; 0 on a CPU
    ddr: int  # its share of the node's memory
    hbm_bandwidth: float
    host_bandwidth: float  # host memory for a CPU, the link (PCIe) between device and host for a GPU
    intra_node: float  # to another rank of the node
    inter_node: float  # to another node
    ssd: int = 2000 * GB

    @property
    def kind(self) -> str:
        """torch's device type."""
        return "cuda" if self.hbm else "cpu"

    @property
    def memory(self) -> int:
        """Bytes where tables are by default: device memory, or host memory on a CPU."""
        return self.hbm or self.ddr

    def topology(self, world_size: int, local_world_size: int) -> Topology:
        """TorchRec's topology of `world_size` such ranks, `local_world_size` on each node."""
        per_ms = 1e-3
        host = "hbm_to_ddr_mem_bw" if self.hbm else "ddr_mem_bw"
        return Topology(
            world_size=world_size,
            local_world_size=local_world_size,
            compute_device=self.kind,
            hbm_cap=self.hbm,
            ddr_cap=self.ddr,
            ssd_cap=self.ssd,
            hbm_mem_bw=self.hbm_bandwidth * per_ms,
            intra_host_bw=self.intra_node * per_ms,
            inter_host_bw=self.inter_node * per_ms,
            **{host: self.host_bandwidth * per_ms},
        )


def _gpu(name: str, *figures: float) -> Device:
    hbm, ddr, bandwidth, pcie, intra, inter = (round(f * GB) for f in figures)
    return Device(name, hbm, ddr, bandwidth, pcie, intra, inter)


# Device memory and its bandwidth: NVIDIA's data sheets of the SXM modules (V100, A100, H100, H200), the DGX
# B200, and the cards L4, A10 (A10G: Amazon's EC2 G5), L40S, T4. A driver shows a few per cent more or less.
# Links: half of the sheets' sums of both directions: NVLink 300, 600, 600, 900, 900, 1,800 GB/s; PCIe x16 of
# generation 3, 4, 5: 32, 64, 128 GB/s. Host memory and network, divided by 8 GPUs: DGX-1 (512 GB, 4 x 100
# Gb/s), DGX A100 (1 or 2 TB, 8 x 200 Gb/s), DGX H100, H200, B200 (2 TB, 8 x 400 Gb/s), EC2 g6.48xlarge,
# g5.48xlarge, g6e.48xlarge (768 or 1,536 GiB; 100 or 400 Gb/s), g4dn.metal (384 GiB, 100 Gb/s).
_GPUS = (
    #    name      memory  host   HBM/s  PCIe  node  network
    _gpu("v100-16", 16, 64, 900, 16, 150, 6.25),
    _gpu("v100", 32, 64, 900, 16, 150, 6.25),
    _gpu("a100-40", 40, 128, 1555, 32, 300, 25),
    _gpu("a100-80", 80, 256, 2039, 32, 300, 25),
    _gpu("h100", 80, 256, 3350, 64, 450, 50),
    _gpu("h200", 141, 256, 4800, 64, 450, 50),
    _gpu("b200", 180, 256, 8000, 64, 900, 50),
    _gpu("l4", 24, 96, 300, 32, 32, 1.56),
    _gpu("l40s", 48, 192, 864, 32, 32, 6.25),
    _gpu("a10g", 24, 96, 600, 32, 32, 1.56),
    _gpu("t4", 16, 48, 320, 16, 16, 1.56),
)
# A rank of a server without GPUs: eight channels of DDR4-3200 for 4 ranks, gloo over loopback (an order of
# magnitude, not a figure of a maker), 100 Gb/s.
_CPU = Device("cpu", 0, 64 * GB, 0, 51.2 * GB, 10 * GB, 12.5 * GB)
DEVICES = {device.name: device for device in (_CPU, *_GPUS)}
_UNKNOWN_GPU = DEVICES["a100-40"]  # gives the links of a GPU that is not in the list


def named_device(name: str, hbm: float | None = None, ddr: float | None = None) -> Device:
    """A device of DEVICES. `hbm`, `ddr`: GB of device memory, of host memory for each rank, if not its own.

    Raises DataError for an unknown name, for device memory on a CPU, and for sizes that are not above 0.
    """
    if name not in DEVICES:
        raise DataError(f"--device {name}: not known (known: {', '.join(DEVICES)}); --hbm changes its memory")
    device = DEVICES[name]
    for flag, size in (("--hbm", hbm), ("--ddr", ddr)):
        if size is not None and not 0 < size < math.inf:
            raise DataError(f"{flag} {size}: must be a size above 0 and finite, in GB")
    if hbm is not None and not device.hbm:
        raise DataError(f"--hbm: a {name} has no device memory; use --ddr")
    sizes = {"hbm": hbm, "ddr": ddr}
    return dataclasses.replace(device, **{k: round(v * GB) for k, v in sizes.items() if v is not None})


def cpu_device(ddr: int) -> Device:
    """A rank on this machine's CPU, with `ddr` bytes of its memory."""
    return dataclasses.replace(_CPU, ddr=ddr)


def cuda_device(properties: Any, ddr: int) -> Device:
    """The GPU with these properties (torch.cuda.get_device_properties) and `ddr` bytes of host memory.

    Its memory is what the driver reports, its bandwidth follows from the memory's clock and bus where torch
    reports them, and its links are those of the device of DEVICES with its name.
    """
    words = properties.name.lower().replace("-", " ").split()
    alike = [device for device in _GPUS if device.name.split("-")[0] in words]
    nearest = min(alike or [_UNKNOWN_GPU], key=lambda d: abs(d.hbm - properties.total_memory))
    clock, bus = (getattr(properties, n, 0) for n in ("memory_clock_rate", "memory_bus_width"))  # kHz, bits
    return dataclasses.replace(
        nearest,
        name=properties.name,
        hbm=properties.total_memory,
        ddr=ddr,
        hbm_bandwidth=2 * clock * 1e3 * bus / 8 or nearest.hbm_bandwidth,  # two transfers a tick
    )


def rank_device(ranks: Ranks) -> Device:
    """The present device of a rank: its GPU, if it has one, and its share of this machine's memory."""
    host = host_memory() // ranks.local_world_size
    if ranks.device.type == "cuda":
        return cuda_device(torch.cuda.get_device_properties(ranks.device), host)
    return cpu_device(host)


def host_memory() -> int:
    """Bytes of memory this machine, or the container around this process, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
