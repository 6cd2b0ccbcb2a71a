"""Rules on how towers are joined and trained (`model.joined`, `model.reduction`), for `check`."""

from __future__ import annotations

from collections.abc import Callable

from dlrrec_torchrec.store.modality import parts_of


def _joined(groups: list[str], modalities: list | None, vectors: str) -> str | None:
    names = [name for group in groups for name in parts_of(group)]
    if wrong := [group for group in groups if len(parts_of(group)) < 2 or not all(parts_of(group))]:
        return f"'{wrong[0]}' must be two or more names with + between them, as user_text+item_text"
    if twice := [name for name in names if names.count(name) > 1]:
        return f"'{twice[0]}' is named twice, and one tower reduces it"
    if unknown := [name for name in names if modalities is not None and name not in modalities]:
        return f"'{unknown[0]}' is not among model.modalities ({', '.join(modalities) or 'none'})"
    if groups and vectors == "table":
        return "joins vectors of rows: set model.vectors=row, or this to []"
    return None


def _fixed_towers(weight: float, reduction: str) -> str | None:
    if weight and reduction != "joint":
        return f"has no tower to shape with model.reduction={reduction}; set it to 0"
    return None


def _nothing_to_permute(permuted: bool, reduction: str) -> str | None:
    if permuted and reduction != "joint":
        return f"permutes nothing with model.reduction={reduction}, which has no contrastive terms"
    return None


def _lists_of_sides(weight: float, joined: list[str], reduction: str) -> str | None:
    if weight and joined:
        return "needs vectors of users and of items by themselves, which model.joined takes away; set it to 0"
    if weight and reduction == "alone":
        return "model.reduction=alone trains towers only; set it to 0"
    return None


REDUCTION_RULES: list[tuple[tuple[str, ...], Callable[..., str | None]]] = [
    (("model.joined", "model.modalities", "model.vectors"), _joined),
    (("contrastive.item_weight", "model.reduction"), _fixed_towers),
    (("contrastive.user_weight", "model.reduction"), _fixed_towers),
    (("contrastive.permuted", "model.reduction"), _nothing_to_permute),
    (("list.weight", "model.joined", "model.reduction"), _lists_of_sides),
]
