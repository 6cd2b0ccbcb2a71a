"""What an experiment is: groups of cells on the same shards, and which cells are compared.

A cell is one training, a row of the table. Cells of a group differ in what a run's variants may change
(model, contrastive, list, train); what makes other shards (another protocol, similarity, text) is another
group. Each cell has a level for each factor, as {"inputs": "text", "loss": "BCE"}; two cells that differ in
one factor alone can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.store.paths import RunPaths

# Makes the shards of one seed: the seed's settings and its folders -> `paths.shards`, which exist afterwards.
Make = Callable[[RunConfig, RunPaths], None]
PROTOCOLS = ("paper", "strict")
ANY = "–"  # level of a factor that means nothing for a cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model to train.

    Attributes:
        name: of its folder, unique in its group.
        levels: factor -> level, of the factors that its group does not name.
        changes: section -> setting -> value, as a variant of a run.
        published: metric -> the papers' number for it; where rows of training count too, as "train_fpr".
    """

    name: str
    levels: Mapping[str, str]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells on the same shards.

    Attributes:
        name: of its folder, unique in the experiment.
        levels: factor -> level of all its cells; "protocol" and "data" among them.
        config: settings of the run; its variants do not count, the cells take their place.
        cells: at least one.
        make: how its shards are made from `paths.reviews`; None: by the stages split to prepare.
    """

    name: str
    levels: Mapping[str, str]
    config: RunConfig
    cells: tuple[Cell, ...]
    make: Make | None = None

    @property
    def run_config(self) -> RunConfig:
        """The settings with the cells as variants."""
        return dataclasses.replace(
            self.config, variants={cell.name: dict(cell.changes) for cell in self.cells}
        )

    def levels_of(self, cell: Cell) -> dict[str, str]:
        """The levels of a cell with those of the group."""
        return {**self.levels, **cell.levels}


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Each cell is compared with the one that has the level `base` of `factor` and else the same levels;
    where that one's level of another factor is ANY, those of the first do not matter.

    Attributes:
        other_rows: also where the two were measured on other test rows, so that their metrics are compared
            and not their rows.
    """

    factor: str
    base: str
    other_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Groups of cells, and what is asked of them.

    Attributes:
        name: of the command.
        title: of the page.
        question: one sentence.
        groups: in the order of the table.
        metrics: the table's columns, names of `measures.METRICS`.
        compared: of these, those whose differences are tested.
        contrasts: what is compared with what.
        notes: what a reader of the table must know.
        lists: measure lists by content alone, too.
    """

    name: str
    title: str
    question: str
    groups: tuple[Group, ...]
    metrics: tuple[str, ...]
    compared: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...] = ()
    lists: bool = False

    def cells(self) -> Iterator[tuple[Group, Cell]]:
        """Every cell with its group."""
        for group in self.groups:
            for cell in group.cells:
                yield group, cell

    @property
    def factors(self) -> list[str]:
        """In the order in which groups and cells name them; protocol last."""
        names = dict.fromkeys(name for group, cell in self.cells() for name in group.levels_of(cell))
        return [name for name in names if name != "protocol"] + ["protocol"] * ("protocol" in names)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks of an experiment.

    Attributes:
        data: name -> the settings of a run on it; model and training are the experiment's own.
        given: settings, "SECTION.KEY", that the command line gave: they hold for every group, whatever the
            experiment says (cells may still differ in them).
        protocols: of PROTOCOLS.
        seeds: repeats.
        quick: fewer cells, epochs and seeds: to see that it works, not evidence.
    """

    data: Mapping[str, RunConfig]
    given: tuple[str, ...] = ()
    protocols: tuple[str, ...] = PROTOCOLS
    seeds: int = 5
    quick: bool = False


Definition = Callable[[Options], Experiment]
