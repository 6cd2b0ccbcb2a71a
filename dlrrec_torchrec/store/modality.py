"""What a content vector is of, and who made it: modalities are data, any number of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from dlrrec_torchrec.store.errors import DataError

SIDES = ("user", "item")
KINDS = ("text", "image", "other")
BUILT_IN = {"user_text": "text", "item_text": "text", "item_image": "image"}  # name -> kind

_NAME = re.compile(r"(user|item)_[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Modality:
    """One kind of content vector of users or of items. It has one tower in the model.

    Attributes:
        name: of columns, towers and tables, as "item_audio"; of joined ones their names with + between.
        side: "user" or "item": whose vectors they are; "pair": of a row's user and item, joined.
        kind: "text", "image" or "other".
        source: "reviews" or "summary" (of the text), "captions" or "pictures", "file" (the user's own).
        dim: numbers of a vector.
        encoder: who made the vectors: a model's name, or the file's.
    """

    name: str
    side: str
    kind: str
    source: str
    dim: int
    encoder: str


def side_named(name: str) -> str | None:
    """Whose vectors the name of a modality says they are, "user" or "item"; None for what is no such name."""
    match = _NAME.fullmatch(str(name))
    return match[1] if match else None


def modality(name: str, dim: int, *, source: str = "file", encoder: str = "", flag: str) -> Modality:
    """The modality `name`, whose side is what the name says (`side_named`).

    Raises DataError naming `flag` for a name that does not begin with user_ or item_, or no size at all.
    """
    side = side_named(name)
    if side is None:
        raise DataError(
            f"{flag}: '{name}' must begin with user_ or item_, which says whose vectors they are, and go on "
            "in letters, digits and '_', as item_audio"
        )
    if dim < 1:
        raise DataError(f"{flag}: '{name}' has vectors of {dim} numbers; at least one is needed")
    return Modality(name, side, BUILT_IN.get(name, "other"), source, dim, encoder)


def parts_of(name: str) -> list[str]:
    """The names of the modalities that are joined in one, as user_text+item_text; of any other its own."""
    return str(name).split("+")


def joined(available: Iterable[Modality], groups: Iterable[str], flag: str) -> tuple[Modality, ...]:
    """The modalities with those of each group (`parts_of`) as one, which comes where its first one stood.

    Vectors of a group are put one after the other, so that its dim is their sum. Its kind is theirs where
    they agree, else "other".

    Raises DataError naming `flag` for a part that is not available.
    """
    found = list(available)
    for group in groups:
        by_name = {modality.name: modality for modality in found}
        if unknown := [name for name in parts_of(group) if name not in by_name]:
            raise DataError(
                f"{flag}: there is no '{unknown[0]}' to join (there is: {', '.join(by_name) or 'none'})"
            )
        parts = [by_name[name] for name in parts_of(group)]
        kinds = {part.kind for part in parts}
        found[found.index(parts[0])] = Modality(
            group,
            "pair",
            kinds.pop() if len(kinds) == 1 else "other",
            source="+".join(dict.fromkeys(part.source for part in parts)),
            dim=sum(part.dim for part in parts),
            encoder="+".join(dict.fromkeys(part.encoder for part in parts)),
        )
        found = [modality for modality in found if modality not in parts]
    return tuple(found)


def chosen(names: Iterable[str] | None, available: Iterable[Modality], flag: str) -> tuple[Modality, ...]:
    """The modalities that `names` lists, in that order; all available ones for None.

    Raises DataError naming `flag` for a name that is unknown (listing what there is) or comes twice.
    """
    by_name = {modality.name: modality for modality in available}
    if names is None:
        return tuple(by_name.values())
    names = list(names)
    for name in names:
        if name not in by_name:
            raise DataError(f"{flag}: there is no '{name}' (there is: {', '.join(by_name) or 'none'})")
    if len(set(names)) != len(names):
        raise DataError(f"{flag}: {', '.join(names)} names a modality twice")
    return tuple(by_name[name] for name in names)
