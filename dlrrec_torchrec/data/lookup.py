"""What a batch looks up in content tables: each distinct entity once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from dlrrec_torchrec.store.modality import Modality


class Parts(Pipelineable):
    """Moves the tensors in a dataclass's fields, in dictionaries and in parts of its own kind.

    None and tuples, which say what the tensors are, stay as they are.
    """

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
        parts: list[Any] = []
        self._map(parts.append)
        jagged = [part for part in parts if isinstance(part, KeyedJaggedTensor)]
        tensors = [part for part in parts if not isinstance(part, KeyedJaggedTensor)]
        tensors += [tensor for ids in jagged for tensor in (ids.values(), ids.lengths())]
        return sum(tensor.nbytes for tensor in tensors)

    def _map(self, function: Callable) -> Self:
        def mapped(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: mapped(part) for name, part in value.items()}
            return value if value is None or isinstance(value, tuple) else function(value)

        return type(self)(**{f.name: mapped(getattr(self, f.name)) for f in dataclasses.fields(self)})


ROLES = ("anchor", "positive", "hard", "negative", "candidate")
_COMMON = ("negative", "candidate")  # of all rows


@dataclasses.dataclass
class Lookup(Parts):
    """The distinct entities whose vectors a batch looks up in content tables, each once.

    Attributes:
        modalities: of the content tables.
        ids: for each modality the distinct codes of its side, ascending, spread over the batch's rows.
        codes: "user", "item" -> these codes, i64 [U].
        places: side -> role -> where in `codes` each row's entity is; U where there is none. The roles are
            "anchor" i64 [B]; with contrastive terms "positive" i64 [B], "negative" i64 [N] and, where rows
            have negatives of their own, "hard" i64 [B, H]; and of the items that a list head compares,
            "candidate" i64 [C].
    """

    modalities: tuple[Modality, ...]
    ids: KeyedJaggedTensor
    codes: dict[str, Tensor]
    places: dict[str, dict[str, Tensor]]

    def of_rows(self, rows: slice) -> Lookup:
        """What only the batch's `rows` look up, against the same negatives and candidates."""
        codes_of: dict[str, dict[str, Tensor]] = {}
        for side, roles in self.places.items():
            codes_or_none = torch.cat([self.codes[side], torch.tensor([-1])])
            codes = {role: codes_or_none[places] for role, places in roles.items()}
            codes_of[side] = {role: c if role in _COMMON else c[rows] for role, c in codes.items()}
        return make_lookup(codes_of, self.modalities)


def make_lookup(codes_of: Mapping[str, Mapping[str, Tensor]], modalities: Sequence[Modality]) -> Lookup:
    """The lookup of these codes: side -> role (ROLES) -> i64, -1 for none."""
    codes: dict[str, Tensor] = {}
    places: dict[str, dict[str, Tensor]] = {}
    rows = 1
    for side, roles in codes_of.items():
        codes[side], place = distinct_codes(torch.cat([wanted.reshape(-1) for wanted in roles.values()]))
        parts = place.split([wanted.numel() for wanted in roles.values()])
        places[side] = {r: part.view(roles[r].shape) for r, part in zip(roles, parts, strict=True)}
        rows = max(rows, len(roles["anchor"]))
    # FBGEMM's kernels work row by row, so the ids are spread evenly over as many rows as the batch has.
    cuts = torch.arange(rows + 1)
    values = [codes[modality.side] for modality in modalities]
    lengths = [(cuts * len(distinct) // rows).diff().int() for distinct in values]
    names = [modality.name for modality in modalities]
    ids = KeyedJaggedTensor(names, torch.cat(values), lengths=torch.cat(lengths))
    return Lookup(tuple(modalities), ids, codes, places)


def distinct_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct codes in `codes` [n], ascending [U], and where each is among them [n]; U for -1."""
    distinct, place = torch.unique(codes, return_inverse=True)
    if len(distinct) and distinct[0] < 0:
        distinct, place = distinct[1:], place - 1
        place = torch.where(place < 0, len(distinct), place)
    return distinct, place
