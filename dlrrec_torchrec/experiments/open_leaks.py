"""Which of the known leaks a run's settings and data open, and why.

Nothing is trained: settings, manifests and rows tell. What the trees of `leakage` find beside it needs no
list of leaks, but sees only what training rows' features tell of their own labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.eight_leaks import KEY, LEAKS
from dlrrec_torchrec.experiments.rows_apart import foreign_means, own_ratings_kept, own_vectors_kept
from dlrrec_torchrec.split.copied_texts import Copies, copies
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths

OPEN, TRACE, CLOSED, UNKNOWN = "open", "trace", "closed", "unknown"
PLANTED = "these shards were made so on purpose"
_WHOLE = "their user's or item's whole"
FEW = 0.02  # share of the test rows up to which copies are a trace: too few to move a metric by more


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one leak: one of OPEN, TRACE (there, but of too few rows to matter), CLOSED and UNKNOWN.

    Attributes:
        leak: a key of LEAKS.
        why: in words, with what was counted.
    """

    leak: str
    state: str
    why: str

    @property
    def line(self) -> str:
        """What the leak is."""
        return LEAKS[self.leak]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is there of a run: its settings, folders, and the manifests of the stages that have run."""

    config: RunConfig
    paths: RunPaths
    reviews: Manifest | None
    split: Manifest | None
    content: Manifest | None
    swing: Manifest | None
    shards: Manifest | None
    trained: dict[str, Manifest]

    @property
    def paper_split(self) -> bool:
        """Whether the rows were split by protocol `paper`."""
        protocol = self.config.protocol if self.split is None else self.split.config.get("protocol")
        return protocol == "paper"

    @property
    def statistics(self) -> str:
        """What the shards' training rows leave out."""
        return self.of_prepare("statistics", self.config.prepare.statistics)

    def of_prepare(self, name: str, default: object) -> object:
        """A setting of `prepare`, as the shards were made with it."""
        return default if self.shards is None else self.shards.config.get(name, default)

    def planted(self, name: str) -> bool:
        """Whether the shards say that this was done on purpose (`leaky_shards.Known`)."""
        return bool(self.shards and self.shards.config.get(KEY, {}).get(name))

    def made_of(self, manifest: Manifest | None, name: str, source: Manifest | None) -> bool | None:
        """Whether a stage read what `source` is today; None where one of them is not there."""
        return None if manifest is None or source is None else manifest.inputs.get(name) == source.fingerprint


def open_leaks(config: RunConfig, paths: RunPaths) -> list[Verdict]:
    """A verdict on each of LEAKS for one seed of a run, in their order.

    Args:
        config: the run's settings; what the manifests say goes before.
        paths: of the seed. Stages that did not run yet leave a leak to be judged by the settings, or unknown.

    Raises DataError for damaged manifests and tables.
    """
    run = _Run(
        config,
        paths,
        *map(_manifest, (paths.reviews, paths.split, paths.content, paths.swing, paths.shards)),
        {n: m for n in config.variants if (m := _manifest(paths.train(n)))},
    )
    judges = (_own, _tested, _swing, _means, _epoch, _filter, _folds, _both_sides)
    return [Verdict(leak, *judge(run)) for leak, judge in zip(LEAKS, judges, strict=True)]


def describe_leaks(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The verdicts as a table in plain text, a line each."""
    yield "leaks that this run's settings and data open:"
    for verdict in verdicts:
        yield f"  ({verdict.leak}) {verdict.state:<8} {verdict.line}"
        yield f"      {'':<8} {verdict.why}"


def _own(run: _Run) -> tuple[str, str]:
    tables = [name for name, m in run.trained.items() if not m.facts.get("leave_one_out", True)]
    tables += [n for n in run.config.variants if n not in run.trained and _vectors(run, n) == "table"]
    if tables:
        return (
            OPEN,
            f"model.vectors is table ({', '.join(tables)}): vectors by id are of all training reviews",
        )
    if run.planted("own_content"):
        return OPEN, PLANTED
    if run.shards is None:
        return CLOSED, "model.vectors is row; there are no shards yet to look at"
    kept = own_vectors_kept(run.paths.shards, run.paths.content)
    if kept.rows and kept.share > 0.5:
        return OPEN, f"{kept} have {_WHOLE} vector, with their own review in it"
    if own := run.of_prepare("vectors", {}):
        return (
            UNKNOWN,
            f"vectors of your own ({', '.join(own)}) leave nothing out; were they made of reviews?",
        )
    if not kept.rows:
        return CLOSED, f"prepare.statistics is {run.statistics}; no training row has a vector to compare"
    return CLOSED, f"{kept} have {_WHOLE} vector (prepare.statistics: {run.statistics})"


def _vectors(run: _Run, name: str) -> str:
    changes = (run.config.variants.get(name) or {}).get("model") or {}
    return changes.get("vectors", run.config.model.vectors)


def _tested(run: _Run) -> tuple[str, str]:
    if run.planted("tested_content"):
        return OPEN, PLANTED
    if own := run.of_prepare("vectors", {}):
        return UNKNOWN, f"vectors of your own ({', '.join(own)}): were tested reviews among what made them?"
    by_hand = ":" in run.config.extract.provider
    current = run.made_of(run.content, "split", run.split), run.made_of(run.shards, "content", run.content)
    if False in current:
        return UNKNOWN, "content or shards were made of an earlier split than the one that is there"
    if by_hand:
        return (
            UNKNOWN,
            f"extract.provider {run.config.extract.provider} is your own; it gets training rows only",
        )
    if None in current:
        return CLOSED, "extract reads training rows only; not all of its output is there to check"
    return CLOSED, "content was made of the training rows of this split"


def _swing(run: _Run) -> tuple[str, str]:
    if run.planted("tested_pairs"):
        return OPEN, PLANTED
    if (run.swing.config if run.swing else {}).get("pairs", run.config.swing.pairs) == "liked":
        return (
            OPEN,
            "swing.pairs is liked: a training row's own label decides whether it shapes its neighbours",
        )
    current = run.made_of(run.swing, "split", run.split), run.made_of(run.shards, "swing", run.swing)
    if False in current:
        return UNKNOWN, "neighbours or shards were made of an earlier split than the one that is there"
    if None in current:
        return CLOSED, "swing reads training rows only; not all of its output is there to check"
    return CLOSED, "neighbours were found in the training rows of this split"


def _means(run: _Run) -> tuple[str, str]:
    if run.shards is None:
        return CLOSED, "a row's means leave its own rating out; there are no shards yet to look at"
    if run.planted("own_rating") or run.planted("tested_ratings"):
        return OPEN, PLANTED
    kept = own_ratings_kept(run.paths.shards)
    if kept.rows and kept.share > 0.5:
        return OPEN, f"{kept} have {_WHOLE} mean, with their own rating in it"
    closed = f"{kept} have {_WHOLE} mean{' (so few do by chance)' if kept.count else ''}"
    smoothing = run.of_prepare("smoothing", None)
    if run.split is None or smoothing is None:
        return CLOSED, closed
    if not run.made_of(run.shards, "split", run.split):
        return UNKNOWN, "the shards were made of an earlier split than the one that is there"
    foreign = foreign_means(run.paths.shards, run.paths.split, smoothing)
    if foreign.count:
        return OPEN, f"{foreign} have another mean than their training rows give: other ratings are in it"
    return CLOSED, f"{closed}, and all means are those of training rows"


def _epoch(run: _Run) -> tuple[str, str]:
    tested = [name for name, manifest in run.trained.items() if manifest.facts.get("split") == "test"]
    if tested:
        rules = {run.trained[name].facts.get("rule") for name in tested}
        return OPEN, f"{', '.join(tested)}: best epoch by the test rows (rule {', '.join(map(str, rules))})"
    if run.config.protocol == "paper":
        return OPEN, "protocol is paper: trainings choose their epoch on the test rows"
    return CLOSED, "epochs are chosen on validation rows"


def _filter(run: _Run) -> tuple[str, str]:
    done = {} if run.split is None else run.split.config
    if done.get("method", run.config.split.method) == "published":
        return CLOSED, "the split is the source's own; the filter looks at training rows only"
    if run.made_of(run.split, "reviews", run.reviews) is False:
        return UNKNOWN, "the split was made of other reviews than those that are there"
    if not run.paper_split:
        return CLOSED, "rows are split first; the filter looks at training rows only"
    least = done.get("min_reviews", run.config.split.min_reviews)
    dropped = {} if run.split is None else run.split.facts.get("dropped", {})
    why = f"protocol is paper: split.min_reviews {least} and the choice of test rows look at all rows"
    if "min_reviews" in dropped:
        why += f"; {dropped['min_reviews']:,} reviews were dropped so"
    return OPEN, why


def _folds(run: _Run) -> tuple[str, str]:
    if run.statistics == "row":
        return OPEN, "prepare.statistics is row: compared with each other, rows tell their labels"
    return CLOSED, f"prepare.statistics is {run.statistics}"


def _both_sides(run: _Run) -> tuple[str, str]:
    if run.split is None:
        return UNKNOWN, "there is no split to look at"
    found = copies(run.paths.split)
    return _copied(found), str(found)


def _copied(found: Copies) -> str:
    if not found.copied:
        return CLOSED
    return TRACE if found.copied <= FEW * found.tested else OPEN


def _manifest(folder: Path) -> Manifest | None:
    return Manifest.read(folder) if (folder / "manifest.json").exists() else None


def any_open(verdicts: Sequence[Verdict]) -> bool:
    """Whether a leak is open."""
    return bool(np.any([verdict.state == OPEN for verdict in verdicts]))
