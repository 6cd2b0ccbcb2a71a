"""Where a run keeps what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from dlrrec_torchrec.store.folders import check_name


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The folders of one run of one seed. `shared` holds what does not depend on the seed."""

    root: Path
    shared: Path

    @property
    def reviews(self) -> Path:
        return self.shared / "reviews"

    @property
    def items(self) -> Path:
        return self.shared / "items"

    @property
    def cache(self) -> Path:
        return self.shared / "cache"

    @property
    def split(self) -> Path:
        return self.root / "split"

    @property
    def content(self) -> Path:
        return self.root / "content"

    @property
    def swing(self) -> Path:
        return self.root / "swing"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def trainings(self) -> Path:
        """A folder for each variant."""
        return self.root / "train"

    def train(self, variant: str) -> Path:
        """Raises DataError for a variant's name that could lead to another folder."""
        check_name(variant, "--variant")
        return self.trainings / variant

    def folders(self, attribute: str, variants: Iterable[str]) -> list[Path]:
        """What is behind an attribute: one folder, or of `trainings` that of each of these variants."""
        if attribute == "trainings":
            return [self.train(name) for name in variants]
        return [getattr(self, attribute)]

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def tune(self) -> Path:
        """The trials of `dlrrec tune`, and the best configuration."""
        return self.root / "tune"

    @property
    def final(self) -> Path:
        """What is made of all reviews: split, content, swing, shards and train (`refitted`)."""
        return self.root / "final"

    @property
    def refitted(self) -> RunPaths:
        """The folders in `final`; reviews, items and cache are those of this run."""
        return RunPaths(self.final, self.shared)

    @property
    def report(self) -> Path:
        return self.shared / "report"


def run_paths(root: str | Path, seeds: int = 1) -> list[RunPaths]:
    """One RunPaths for each seed: the run's folder itself for a single one, else `seed-0`, `seed-1`, ..."""
    root = Path(root)
    if seeds == 1:
        return [RunPaths(root, root)]
    return [RunPaths(root / f"seed-{k}", root) for k in range(seeds)]
