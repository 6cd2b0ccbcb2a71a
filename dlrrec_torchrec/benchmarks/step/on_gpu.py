"""The training step of the whole model on one device: its time beside its roofline, and its memory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from typing import Any

import torch
from torch import Tensor

from dlrrec_torchrec.benchmarks.step.roofline import Counter
from dlrrec_torchrec.benchmarks.timing import summary
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.data.lookup import side_of
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.spec import sparse_keys
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import CATEGORY_SLOTS, NUM_CATEGORIES, PAD_CATEGORY, VECTOR_DIM
from dlrrec_torchrec.training.optimizers import make_optimizer
from dlrrec_torchrec.training.steps import make_pipeline

PAPER = {"users": 28_912, "items": 15_290}  # of the papers' data
DENSE_WIDTH, POSITIVES = 7, 10  # of the prepare stage's defaults


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model is trained on: batches in host memory, and the vectors of all entities.

    Attributes:
        batches: of one size.
        corpus: modality -> f16 [entities, 384].
        users, items: entities; dense_width: columns of the dense features.
    """

    batches: list[Batch]
    corpus: dict[str, Tensor]
    users: int
    items: int
    dense_width: int


def random_data(
    model: ModelConfig, batch_size: int, batches: int, *, users: int, items: int, seed: int = 0
) -> Data:
    """Random rows in the form of the prepare stage's: a step's time does not depend on what they say."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    def vectors(rows: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, VECTOR_DIM, generator=draw)).half()

    counts = {"user": users, "item": items}
    corpus = {name: vectors(counts[side_of(name)]) for name in model.modalities}
    made = []
    for _ in range(batches):
        codes = {side: integers(count, batch_size) for side, count in counts.items()}
        category = integers(NUM_CATEGORIES, batch_size, CATEGORY_SLOTS)
        used = integers(CATEGORY_SLOTS + 1, batch_size, 1)
        category[torch.arange(CATEGORY_SLOTS) >= used] = PAD_CATEGORY
        made.append(
            Batch(
                dense=torch.randn(batch_size, DENSE_WIDTH, generator=draw),
                sparse=make_sparse(category, codes["user"], codes["item"], sparse_keys(model)),
                vectors={name: corpus[name][codes[side_of(name)]] for name in model.modalities},
                label=integers(2, batch_size).float(),
                user=codes["user"],
                item=codes["item"],
                user_positives=integers(users, batch_size, POSITIVES),
                item_positives=integers(items, batch_size, POSITIVES),
            )
        )
    return Data(made, corpus, users, items, DENSE_WIDTH)


def shards_data(shards: str | os.PathLike, model: ModelConfig, batch_size: int, batches: int) -> Data:
    """The first `batches` batches of an epoch of prepared shards, fewer where there are fewer.

    Raises DataError for shards that cannot be used, and for less than one batch.
    """
    facts = Manifest.read(shards).facts
    rows = make_loader(
        shards,
        "train",
        batch_size,
        modalities=model.modalities,
        positives=facts["positives"],
        sparse_keys=sparse_keys(model),
        shuffle=True,
        drop_last=True,
    )
    made = list(itertools.islice(rows, batches))
    if not made:
        raise DataError(f"{shards}: has fewer than {batch_size} training rows; take a smaller batch")
    corpus = {name: torch.from_numpy(v) for name, v in load_entities(shards).vectors.items()}
    return Data(made, corpus, facts["users"], facts["items"], facts["dense_width"])


def measure_training(
    data: Data,
    ranks: Ranks,
    peaks: dict[str, float],
    *,
    model: ModelConfig,
    contrastive: ContrastiveConfig,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Training steps on batches that are in (page-locked) host memory, copied to the device as in training.

    Args:
        peaks: of the device (`roofline.peaks`).
        steps: of a round; a first round that does not count warms up.

    Returns:
        batch: rows of a step.
        seconds: of a step (median, p10, p90 over the rounds); rows_per_second: by the median.
        roofline: `flops` and `bytes` of a step's operations (`roofline.Counter`), `seconds` that they take at
            the device's peaks, one after the other, and `share` of it in the step's median.
        floor: the same were all operations one: `bytes` of the batch read once, and of weights and Adam's two
            moments read and written once.
        peak_memory: on a GPU, bytes.

    Raises:
        DataError: a loss that is not a number.
    """
    device, size = ranks.device, len(data.batches[0])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    plain = build_model(
        model, dense_width=data.dense_width, num_users=data.users, num_items=data.items, device="meta"
    )
    wrapper = build_wrapper(plain, contrastive, corpus=data.corpus)
    sharded = shard_tables(wrapper, ranks, batch_size=size)
    optimizer = make_optimizer(sharded, lr=0.001)
    sharded.train()

    counter, batch = Counter(), data.batches[0].to(device)
    for context in (contextlib.nullcontext(), counter):  # the first step makes the optimizers' state
        with context:
            optimizer.zero_grad()
            loss, _ = sharded(batch)
            loss.backward()
            optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in sharded.parameters())
    least = 6 * weights + batch.nbytes

    pinned = [b.pin_memory() for b in data.batches] if device.type == "cuda" else data.batches
    pipeline, batches, seconds = make_pipeline(sharded, optimizer, device), itertools.cycle(pinned), []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            parts = pipeline.progress(batches)
        _wait(device)
        seconds.append((time.perf_counter() - start) / steps)
    if not torch.isfinite(parts["loss_rec"]):
        raise DataError("the measured training has a loss that is not a number")

    found = summary(seconds[1:])
    at_peak = counter.seconds(**peaks)
    at_least = max(counter.flops / peaks["flops_per_second"], least / peaks["bytes_per_second"])
    result = {
        "batch": size,
        "seconds": found,
        "rows_per_second": size / found["median"],
        "roofline": {
            "flops": counter.flops,
            "bytes": counter.bytes,
            "seconds": at_peak,
            "share": at_peak / found["median"],
        },
        "floor": {"bytes": least, "seconds": at_least, "share": at_least / found["median"]},
    }
    if device.type == "cuda":
        result["peak_memory"] = torch.cuda.max_memory_allocated(device)
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
