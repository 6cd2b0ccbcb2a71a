"""What a batch looks up in content tables: each distinct entity once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


class Parts(Pipelineable):
    """Moves the tensors in a dataclass's fields, in dictionaries and in parts of its own kind; None stays."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, from which a GPU copies without waiting."""
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor until `stream` is done with it."""
        self._map(lambda x: x.record_stream(stream))

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        found: list[Any] = []
        self._map(found.append)
        ids = [one for one in found if isinstance(one, KeyedJaggedTensor)]
        whole = [one for one in found if not isinstance(one, KeyedJaggedTensor)]
        return sum(one.nbytes for one in [*whole, *(part for k in ids for part in (k.values(), k.lengths()))])

    def _map(self, function: Callable) -> Self:
        def mapped(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: function(part) for name, part in value.items()}
            return None if value is None else function(value)

        return type(self)(**{f.name: mapped(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclasses.dataclass
class Lookup(Parts):
    """The distinct entities whose vectors a batch looks up in content tables, each once.

    Attributes:
        ids: for each modality the distinct codes of its side, ascending, spread over the batch's rows.
        codes: "user", "item" -> these codes, i64 [U].
        places: "SIDE_anchor" i64 [B], and with contrastive terms "SIDE_positive" i64 [B], "SIDE_negative"
            i64 [N] -> where in `codes` each row's entity is; U where there is none.
    """

    ids: KeyedJaggedTensor
    codes: dict[str, Tensor]
    places: dict[str, Tensor]

    def of_rows(self, rows: slice) -> Lookup:
        """What the batch's `rows` alone look up, against the same negatives."""
        wanted: dict[str, dict[str, Tensor]] = {side: {} for side in self.codes}
        for name, places in self.places.items():
            side, role = name.split("_")
            codes = torch.cat([self.codes[side], torch.tensor([-1])])[places]
            wanted[side][role] = codes if role == "negative" else codes[rows]
        return make_lookup(wanted, self.ids.keys())


def make_lookup(wanted: Mapping[str, Mapping[str, Tensor]], modalities: Sequence[str]) -> Lookup:
    """Of the codes i64 (-1 for none) that are wanted: side -> "anchor", "positive", "negative" -> codes."""
    codes: dict[str, Tensor] = {}
    places: dict[str, Tensor] = {}
    rows = 1
    for side, roles in wanted.items():
        codes[side], place = distinct_codes(torch.cat(list(roles.values())))
        found = zip(roles, place.split([len(one) for one in roles.values()]), strict=True)
        places |= {f"{side}_{role}": part for role, part in found}
        rows = max(rows, len(roles["anchor"]))
    # FBGEMM's kernels work row by row, so the ids are spread evenly over as many rows as the batch has.
    cuts = torch.arange(rows + 1)
    values = [codes[side_of(name)] for name in modalities]
    lengths = [(cuts * len(one) // rows).diff().int() for one in values]
    ids = KeyedJaggedTensor(list(modalities), torch.cat(values), lengths=torch.cat(lengths))
    return Lookup(ids, codes, places)


def side_of(modality: str) -> str:
    """ "user" or "item": whose vectors they are."""
    return modality.split("_")[0]


def distinct_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct codes in `codes` [n], ascending [U], and where each is among them [n]; U for -1."""
    distinct, place = torch.unique(codes, return_inverse=True)
    if len(distinct) and distinct[0] < 0:
        distinct, place = distinct[1:], place - 1
        place = torch.where(place < 0, len(distinct), place)
    return distinct, place
