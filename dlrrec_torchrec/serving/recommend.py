"""Ranking of the items that a user has not reviewed, by a trained model."""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlrrec_torchrec.data.entities import Items, load_entities
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files, read_table
from dlrrec_torchrec.store.folders import stage_of
from dlrrec_torchrec.store.manifest import jsonable

_MANY_IDS = 50_000  # above this, only ids that begin alike are compared with a mistyped one
ORDER = "order: what this user would choose next and like (list head); probability: liked, once chosen"


@dataclasses.dataclass(frozen=True)
class Recommended:
    """One recommended item."""

    rank: int  # from 1
    item_id: str
    title: str  # empty where the source has none
    probability: float | None  # of a positive review; None where the user is unknown
    categories: list[str]  # best first
    reviews: int  # training reviews of the item


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """The items for one user, best first; the most reviewed items where the user is unknown."""

    user_id: str
    known_user: bool
    seen: int  # items that the user has reviewed, also those that the model does not know
    items: list[Recommended]
    similar_ids: list[str]  # known ids that look like an unknown one
    message: str
    by_list: bool = False  # ranked by a list head, not by the probability

    def to_json(self) -> str:
        return json.dumps(jsonable(self), indent=2, ensure_ascii=False)

    def to_text(self, width: int = 110) -> str:
        """The message and a table of the items, for a terminal."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("#", justify="right")
        table.add_column("item", overflow="fold")
        if self.known_user:
            table.add_column("probability", justify="right")
        table.add_column("reviews", justify="right")
        table.add_column("categories", overflow="ellipsis", no_wrap=True)
        for item in self.items:
            probability = [f"{item.probability:.3f}"] if self.known_user else []
            name = item.title or item.item_id
            shown = [str(item.rank), escape(name), *probability, f"{item.reviews:,}"]
            table.add_row(*shown, escape(", ".join(item.categories[:3])))
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(escape(self.message))
        if self.items:
            console.print(table)
        if self.by_list and self.items:
            console.print(ORDER)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def recommend(
    shards_dir: str | os.PathLike,
    train_dir: str | os.PathLike,
    user_id: str,
    n: int = 10,
    include_seen: bool = False,
    reviews_dir: str | os.PathLike | None = None,
    batch_size: int = 4096,
    device: str = "cpu",
    model: str = "",
) -> Recommendations:
    """The `n` best items for `user_id`: by the list head's scores (`Scorer.list_scores`), and without a list
    head by the predicted probability of a positive review.

    Every item is scored, except those that the user has reviewed unless `include_seen`; ties are in the
    order of the item codes. Reviewed is what a row of any split says, and any row of `reviews_dir`, where it
    exists: it also knows the rows that the split dropped. An unknown user gets the items with the most
    training reviews, a message that says so, and the known ids that look alike. `model`, in words which model
    this is, becomes part of the message. Raises DataError if `n` < 1, or the model is not trained.
    """
    if n < 1:
        raise DataError(f"-n {n}: must be at least 1")
    entities = load_entities(shards_dir, ())  # without vectors: the scorer has those that it needs
    names = (Path(shards_dir) / "categories.txt").read_text(encoding="utf-8").splitlines()
    user = entities.users.codes.get(user_id)
    reviewed = reviewed_ids(reviews_dir, user_id) if reviews_dir is not None else set()
    if user is not None:
        reviewed |= {entities.items.ids[code] for code in seen_items(shards_dir, user)}
    reviewed_codes = [entities.items.codes[item] for item in reviewed if item in entities.items.codes]
    all_codes = np.arange(len(entities.items))
    candidates = all_codes if include_seen else np.setdiff1d(all_codes, reviewed_codes)
    which = "items that are new to this user" if reviewed and not include_seen else "items"
    if user is None:
        popular = candidates[np.argsort(-entities.items.count[candidates], kind="stable")[:n]]
        similar = similar_ids(user_id, entities.users.ids)
        message = (
            f"User '{user_id}' has no training reviews, so nothing is known of this user's taste."
            f"{' Similar ids: ' + ', '.join(similar) + '.' if similar else ''} The most reviewed {which}:"
        )
        return Recommendations(
            user_id, False, len(reviewed), _described(entities.items, popular, None, names), similar, message
        )
    scorer = Scorer(train_dir, shards_dir, device, batch_size)
    if scorer.has_lists:
        best = np.argsort(-scorer.list_scores(np.array([user]))[0, candidates], kind="stable")[:n]
        logit = scorer.logits(scorer.pairs(scorer.entities, np.full(len(best), user), candidates[best]))
    else:
        logit = scorer.logits(scorer.pairs(scorer.entities, np.full(len(candidates), user), candidates))
        best = np.argsort(-logit, kind="stable")[:n]
        logit = logit[best]
    probability = scorer.calibration.probability(logit)
    message = f"Best {len(best)} of {len(candidates):,} {which}; user '{user_id}' reviewed {len(reviewed):,}"
    message += f". Model: {model}:" if model else ":"
    if not len(candidates):
        message = f"User '{user_id}' has reviewed every item; `dlrrec recommend --include-seen` ranks those."
    return Recommendations(
        user_id,
        True,
        len(reviewed),
        _described(entities.items, candidates[best], probability, names),
        [],
        message,
        scorer.has_lists,
    )


def example_user(shards_dir: str | os.PathLike) -> str:
    """The id of the user with the most training reviews (the first of several): one to try `recommend` on."""
    users = read_table(Path(shards_dir) / "entities" / "users", schema.ENTITY, ["id", "count"])
    if not users.num_rows:
        raise DataError(f"{shards_dir}/entities/users: there are no users; run prepare again")
    return users["id"][int(np.argmax(users["count"].to_numpy()))].as_py()


def seen_items(shards_dir: str | os.PathLike, user: int) -> np.ndarray:
    """The distinct item codes of the rows (of all splits) of the user with code `user`, int64, ascending."""
    parts = [part for split in schema.SPLITS for part in part_files(Path(shards_dir) / split)]
    rows = pads.dataset(parts).to_table(columns=["item"], filter=pads.field("user") == user)
    return np.unique(rows["item"].to_numpy()).astype(np.int64)


def reviewed_ids(reviews_dir: str | os.PathLike, user_id: str) -> set[str]:
    """The ids of all items that `user_id` has reviewed, by the review table; none where there is no table.

    Raises DataError for a table without the columns of REVIEWS.
    """
    if stage_of(reviews_dir) != "ingest":
        return set()
    parts = part_files(reviews_dir)
    for part in parts:
        check_schema(pq.read_schema(part), schema.REVIEWS, part)
    rows = pads.dataset(parts).to_table(columns=["item_id"], filter=pads.field("user_id") == user_id)
    return set(rows["item_id"].to_pylist())


def similar_ids(user_id: str, ids: list[str], most: int = 3) -> list[str]:
    """Up to `most` of `ids` that look like `user_id`, best first; upper and lower case count as the same."""
    start = user_id[:2].lower()
    folded = {i.lower(): i for i in ids if len(ids) <= _MANY_IDS or i.lower().startswith(start)}
    return [folded[i] for i in difflib.get_close_matches(user_id.lower(), folded, most, cutoff=0.75)]


def _described(
    items: Items, codes: np.ndarray, probability: np.ndarray | None, names: list[str]
) -> list[Recommended]:
    # The code of padding is above those of all names.
    return [
        Recommended(
            rank=position + 1,
            item_id=items.ids[code],
            title=items.titles[code] or "",
            probability=None if probability is None else float(probability[position]),
            categories=[names[c] for c in items.category[code] if c < len(names)],
            reviews=int(items.count[code]),
        )
        for position, code in enumerate(codes)
    ]
