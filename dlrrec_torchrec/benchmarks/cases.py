"""What the benchmarks measure, as flags, and the product of a sweep's cases. Needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import ExtractConfig, option
from dlrrec_torchrec.config.check import range_problem
from dlrrec_torchrec.config.read import raise_problems
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import BUILT_IN, modality

WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
SHARDINGS = ("none", "data_parallel", "table_wise", "column_wise", "row_wise")


@dataclasses.dataclass(frozen=True)
class EmbeddingCase:
    """Tables, requests, and how they are computed. Every field is a flag and can be swept."""

    tables: int = option(4, "number of tables, each with one feature", least=1)
    rows: int = option(500_000, "rows of each table", least=1)
    dim: int = option(64, "columns of each table, a multiple of 4", least=1)
    pooling: int = option(11, "ids that each bag sums", least=1)
    batch: int = option(4096, "bags of each table in a step, over all ranks", least=1)
    distribution: str = option("uniform", "how ids are drawn from the rows", ("uniform", "zipf"))
    exponent: float = option(1.05, "for zipf: the k-th most frequent row has a share of k^-exponent", above=0)
    dtype: str = option("fp32", "data type of the tables", tuple(WEIGHT_BYTES))
    output: str = option("same", "data type of the sums; same: the tables'", ("same", *WEIGHT_BYTES))
    optimizer: str = option(
        "rowwise_adagrad", "how touched rows are updated", ("sgd", "rowwise_adagrad", "adam")
    )
    kernel: str = option(
        "fused",
        "fused: updates rows in the backward pass; fused_uvm_caching: the same with tables in host memory "
        "behind a cache on the GPU; dense: FBGEMM's dense gradient and torch's optimizer",
        ("fused", "fused_uvm_caching", "dense"),
    )
    cache_load: float = option(0.2, "for fused_uvm_caching: share of the rows in the cache", above=0, most=1)
    sharding: str = option(
        "none", "none: FBGEMM's module by itself; else through TorchRec's DistributedModelParallel", SHARDINGS
    )
    world_size: int = option(1, "processes (each with a GPU where --device is cuda)", least=1)
    reference: str = option(
        "sparse",
        "gradients of nn.EmbeddingBag, measured too; none: measure without it, for tables that fit only once",
        ("sparse", "dense", "none"),
    )
    device: str = option("auto", "auto, cpu or cuda", ("auto", "cpu", "cuda"))
    threads: int = option(0, "threads of each process (0: the cores shared among the processes)", least=0)
    requests: int = option(8, "different batches, generated in advance and used one after the other", least=1)
    warmup: int = option(3, "rounds before those that count", least=0)
    rounds: int = option(20, "rounds that are measured", least=1)
    copy_mib: int = option(256, "size of the memory copy that measures the bandwidth", least=1)
    seed: int = option(0, "seed of weights, ids and gradients", least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % 4:
            raise DataError(f"--dim {self.dim}: FBGEMM needs a multiple of 4")
        if self.batch % self.world_size:
            raise DataError(f"--batch {self.batch}: must be a multiple of --world-size {self.world_size}")

    @property
    def local_batch(self) -> int:
        """Bags of each table on each rank."""
        return self.batch // self.world_size

    @property
    def output_dtype(self) -> str:
        """Data type of the sums."""
        return self.dtype if self.output == "same" else self.output

    @property
    def lookups(self) -> int:
        """Rows looked up in a step, over all tables and ranks."""
        return self.tables * self.batch * self.pooling


@dataclasses.dataclass(frozen=True)
class LoaderCase:
    """What is read, and how. Every field is a flag."""

    shards: str = option("", "shards of a run to read, such as runs/demo/shards (default: random ones)")
    rows: int = option(196_608, "rows of the random shards; workers keep up to 131,072 in memory", least=1)
    keep: str = option("", "folder for the random shards, reused if they are there (default: temporary)")
    modalities: list = option(list(BUILT_IN), "vectors in the rows, for the kind `vectors`")
    vector_dim: int = option(384, "numbers of each vector of the random shards", least=1)
    positives: int = option(10, "neighbours of the user and of the item", least=0)
    batch: int = option(4096, "rows of a batch", least=1)
    workers: list = option([0, 2], "loader processes; 0: this one, on one core", least=0)
    warmup: int = option(1, "rounds before those that count", least=0)
    rounds: int = option(5, "rounds that are measured, an epoch each", least=1)
    seed: int = option(0, "seed of rows and order", least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        sides_of(self.modalities, self.vector_dim)
        if not self.workers:
            raise DataError("--workers: give numbers, 0 or more")


@dataclasses.dataclass(frozen=True)
class TrainCase:
    """A training step, and what it is measured on. Every field is a flag."""

    batch: int = option(4096, "rows of a step, over all ranks", least=2)
    negatives: int = option(256, "corpus negatives of the contrastive terms", least=1)
    modalities: list = option(list(BUILT_IN), "vectors in the rows, one tower each")
    vector_dim: int = option(384, "numbers of each vector of random rows", least=1)
    positives: int = option(10, "neighbours of the user and of the item in a row", least=1)
    users: int = option(28_912, "users of the random data (default: the papers')", least=2)
    items: int = option(15_290, "items of the random data (default: the papers')", least=2)
    loader: bool = option(False, "end to end: the real loader reads rows from shards, an epoch a round")
    shards: str = option("", "for --loader: shards of a run (default: random ones)")
    rows: int = option(196_608, "for --loader: rows of the random shards", least=2)
    keep: str = option("", "for --loader: folder for the random shards, reused if there (default: temporary)")
    workers: int = option(0, "for --loader: loader processes", least=0)
    steps: int = option(8, "steps of a round, without --loader", least=1)
    warmup: int = option(2, "rounds before those that count", least=0)
    rounds: int = option(10, "rounds that are measured", least=1)
    threads: int = option(0, "threads of each process (0: the cores shared among the processes)", least=0)
    device: str = option("auto", "auto, cpu or cuda", ("auto", "cpu", "cuda"))
    precision: str = option("fp32", "fp32, or bf16: autocast of the forward pass", ("fp32", "bf16"))
    compile: bool = option(False, "torch.compile of this project's dense part")
    reference: str = option(
        "plain", "plain: the same model in plain torch too, on one rank; none", ("plain", "none")
    )
    seed: int = option(0, "seed of data, weights and draws", least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not sides_of(self.modalities, self.vector_dim) >= {"user", "item"}:
            raise DataError("--modalities: the contrastive terms need one of users and one of items")
        if not self.shards and self.negatives > min(self.users, self.items):
            raise DataError(
                f"--negatives {self.negatives}: the plain reference draws without repetition; take at most "
                f"as many as --users {self.users} and --items {self.items}"
            )


@dataclasses.dataclass(frozen=True)
class FeaturesCase:
    """Reviews whose affinity features are computed. Every field is a flag."""

    rows: list = option([100_000, 1_000_000], "reviews; one measurement for each number", least=100)
    rows_a_user: float = option(20.0, "reviews of a user, on average", above=0)
    items: int = option(20_000, "items, but at most a tenth of the reviews", least=2)
    folds: int = option(5, "folds of prepare's training rows, for the estimate of its time", least=2)
    seed: int = option(0, "seed of the random reviews", least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rows:
            raise DataError("--rows: give numbers, 100 or more")


@dataclasses.dataclass(frozen=True)
class StagesCase:
    """Reviews of the made-up world that go through the stages before training. Every field is a flag."""

    rows: list = option([20_000, 200_000], "reviews; one measurement for each number", least=1000)
    folder: str = option("", "existing folder for worlds and what is made of them (default: temporary)")
    seed: int = option(0, "seed of the worlds", least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rows:
            raise DataError("--rows: give numbers, 1000 or more")
        if self.folder and not Path(self.folder).is_dir():
            raise DataError(f"--folder {self.folder}: there is no such folder")


@dataclasses.dataclass(frozen=True)
class EncodeCase:
    """Sentences to embed, and how. Every field is a flag."""

    sentences: int = option(3000, "texts of the made-up world", least=1)
    encoder: str = option(ExtractConfig.encoder, "sentence encoder: hub name or folder")
    precision: str = option("exact", "this project's: exact, or int8 (lossy)", ("exact", "int8"))
    batch_tokens: int = option(ExtractConfig.batch_tokens, "tokens in one batch of this project's", least=1)
    workers: int = option(0, "threads or processes of this project's (0: as extract chooses)", least=0)
    rounds: int = option(5, "rounds that are measured, each side once in each", least=1)
    seed: int = option(0, "seed of the world", least=0)

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(case: Any) -> None:
    """Raise DataError naming every flag whose value is out of range or not among its choices."""
    problems = []
    for known in dataclasses.fields(case):
        value, choices = getattr(case, known.name), known.metadata["choices"]
        flag = "--" + known.name.replace("_", "-")
        if choices and value not in choices:
            problems.append(f"{flag} {value}: is not one of {', '.join(choices)}")
        if text := range_problem(value, known):
            problems.append(f"{flag}: {text}")
    raise_problems(problems)


def sides_of(modalities: Sequence[str], dim: int) -> set[str]:
    """Whose vectors the modalities are, out of "user", "item". Raises DataError for a name that cannot be."""
    return {modality(name, dim, flag="--modalities").side for name in modalities}


def parse_sweeps(texts: Sequence[str]) -> dict[str, list]:
    """`["pooling=1,11,50", "dtype=fp32,fp16"]` -> {"pooling": [1, 11, 50], "dtype": ["fp32", "fp16"]}.

    Raises DataError for a field that is unknown or named twice, and for a value of the wrong type.
    """
    hints = typing.get_type_hints(EmbeddingCase)
    sweeps: dict[str, list] = {}
    for text in texts:
        key, _, values = text.partition("=")
        name = key.strip().replace("-", "_")
        if name not in hints:
            close = difflib.get_close_matches(name, hints, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(hints)}"
            raise DataError(f"--sweep {text}: nothing is called '{key}'; {hint}")
        if name in sweeps:
            raise DataError(f"--sweep {text}: '{key}' is swept twice; give all its values at once")
        try:
            sweeps[name] = [hints[name](value.strip()) for value in values.split(",")]
        except ValueError:
            raise DataError(
                f"--sweep {text}: the values of '{key}' are of type {hints[name].__name__}"
            ) from None
    return sweeps


def product(base: dict[str, object], sweeps: dict[str, list]) -> list[EmbeddingCase]:
    """One case for each combination of the swept values; the last sweep changes fastest."""
    return [
        EmbeddingCase(**base | dict(zip(sweeps, values, strict=True)))
        for values in itertools.product(*sweeps.values())
    ]
