"""What the shards of a run are: how many of everything, and which modalities they hold."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.modality import SIDES, Modality


@dataclasses.dataclass(frozen=True)
class ShardFacts:
    """The facts of prepared shards that their readers need, as their manifest has them.

    Attributes:
        users, items: how many there are; their codes are below these.
        dense: names of the dense features, in order; affinity: names of the affinity's columns, which follow
            them; dense_width: columns they take together.
        rating_range: lowest and highest rating.
        modalities: whose vectors the entity tables hold.
        in_rows: names of those whose vectors are in the rows too.
        positives: neighbours of the user and of the item in a row.
        category_slots: category types of an item, at most.
        category_types: how many types there are; this number itself is the padding's code.
        label_counts: "negative", "positive" -> training rows with that label.
        later: share of the validation rows (the test rows, where there are none) that come after a
            training row of their user and before none; 0 where times are unknown.
    """

    users: int
    items: int
    dense: tuple[str, ...]
    affinity: tuple[str, ...]
    dense_width: int
    rating_range: tuple[float, float]
    modalities: tuple[Modality, ...]
    in_rows: tuple[str, ...]
    positives: int
    category_slots: int
    category_types: int
    label_counts: dict[str, int]
    later: float

    @staticmethod
    def read(shards_dir: str | os.PathLike) -> ShardFacts:
        """From the manifest in `shards_dir`. Raises DataError as `Manifest.read`, and for other folders."""
        return ShardFacts.of(Manifest.read(shards_dir), shards_dir)

    @staticmethod
    def of(manifest: Manifest, shards_dir: str | os.PathLike) -> ShardFacts:
        """From the manifest of `shards_dir`. Raises DataError if it is not that of shards."""
        fields = [f.name for f in dataclasses.fields(ShardFacts)]
        if missing := [name for name in fields if name not in manifest.facts]:
            raise DataError(
                f"{Path(shards_dir) / 'manifest.json'}: its facts have no '{missing[0]}': these are not "
                "shards; run `dlrrec prepare` again"
            )
        values: dict[str, Any] = {name: manifest.facts[name] for name in fields}
        values |= {name: tuple(values[name]) for name in ("dense", "affinity", "rating_range", "in_rows")}
        values["modalities"] = tuple(Modality(**body) for body in values["modalities"])
        return ShardFacts(**values)

    def as_facts(self) -> dict[str, Any]:
        """For `Manifest.facts`, in plain JSON."""
        return jsonable(self)

    @property
    def entities(self) -> dict[str, int]:
        """ "user", "item" -> how many there are."""
        return dict(zip(SIDES, (self.users, self.items), strict=True))

    @property
    def profile_columns(self) -> tuple[range, range] | None:
        """Where among the dense features the user's category profile is, and the item's; None: they are not.

        See `features.category_profiles`; each is in one run of columns.
        """
        found = []
        for name in (schema.USER_PROFILE, schema.ITEM_PROFILE):
            places = [k for k, column in enumerate(self.affinity) if re.fullmatch(rf"{name}\d+", column)]
            if not places:
                return None
            first = self.dense_width - len(self.affinity) + places[0]
            found.append(range(first, first + len(places)))
        return found[0], found[1]

    @property
    def row_modalities(self) -> tuple[Modality, ...]:
        """Those whose vectors are in the rows."""
        by_name = {modality.name: modality for modality in self.modalities}
        return tuple(by_name[name] for name in self.in_rows)

    def row_schema(self, modalities: Iterable[Modality] | None = None) -> pa.Schema:
        """The columns of the rows, with the vectors of these modalities (default: all that are there)."""
        chosen = self.row_modalities if modalities is None else modalities
        return schema.shard_schema(self.dense_width, self.category_slots, chosen, self.positives)

    def entity_schema(self, side: str) -> pa.Schema:
        """The columns of the entity table of "user" or "item"."""
        columns = schema.USER_ENTITY if side == "user" else schema.item_entity(self.category_slots)
        return schema.with_vectors(columns, {m.name: m.dim for m in self.modalities if m.side == side})
