"""Reviews -> training, validation and test rows: filters, five split methods, two protocols.

Protocol `strict`: rows are assigned first, then the activity filter looks at training rows only, and
validation or test rows of ids that training does not know are dropped. Protocol `paper`: the filter looks at
all rows before the split, every tested id keeps a training row, and there is no validation part.
With `cold_items`, all rows of some items are set apart first: `shown` are up to MOST_SHOWN of each, whose
words and pictures may be known of it, `cold` are the others, by users that training knows: a second test, of
what content alone can do.

Every random choice is drawn over rows sorted by (user, item), so the order of the input does not matter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from dlrrec_torchrec.config import SplitConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.split.copied_texts import copied_texts, say_copied
from dlrrec_torchrec.split.labels import labelled
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.schema import SPLIT, SPLITS

TRAIN, VAL, TEST, DROPPED, COLD, SHOWN = range(6)
MUCH = 0.05  # share of rows that are left out from which that is said
MOST_SHOWN = 3  # reviews of an item without training rows that may be known of it


def split(config: SplitConfig, protocol: str, reviews_dir: str | Path, out_dir: str | Path) -> Manifest:
    """Write `out_dir`/{train,val,test} (schema.SPLIT, sorted by user and item) and return the manifest; with
    `cold_items` also {cold,shown}.

    The manifest's facts have `parts` (rows, users, items and positives of each part), `rating_range`
    and `positive_rating` (the scale, and from where on a rating is positive), `dropped` (rows by
    reason), `test_wanted` (test rows requested by share or method) and `kept_for_training` (requested test
    rows that stay because they are the last of their user or item under `paper`) and `copied_texts`
    (`copied_texts`). A pair of user and item is in one part only, since it must not be repeated.

    Raises DataError for a value out of range, a column that the method needs and the reviews lack, a repeated
    user-item pair, and a part that is empty.
    """
    check_settings(config, protocol=protocol)
    inputs = {"reviews": Manifest.read(reviews_dir).fingerprint}
    manifest = Manifest("split", jsonable(config) | {"protocol": protocol}, inputs)
    if previous := manifest.current(out_dir):
        return previous
    with stage_output(manifest, out_dir) as folder:
        rows, scale = labelled(reviews_dir, config.positive_rating)
        user, item = _codes(rows["user_id"]), _codes(rows["item_id"])
        part, manifest.facts = assign_parts(
            user,
            item,
            method=config.method,
            strict=protocol == "strict",
            timestamp=_timestamps(rows, reviews_dir, config.method),
            published_test=_published(rows, reviews_dir) if config.method == "published" else None,
            min_reviews=config.min_reviews,
            test_share=config.test_share,
            val_share=config.val_share,
            folds=config.folds,
            fold=config.fold,
            cold_items=config.cold_items,
            seed=config.seed,
        )
        manifest.facts |= scale
        manifest.facts["copied_texts"] = copied_texts(rows["text"], rows["item_id"], part)
        _write_parts(rows, part, manifest, folder)
    say_copied(manifest.facts["copied_texts"])
    _say_dropped(manifest.facts, manifest.rows["reviews"], config.min_reviews)
    return manifest


def keep_all(positive_rating: float | None, reviews_dir: str | Path, out_dir: str | Path) -> Manifest:
    """Write `out_dir`/{train,val,test} as `split` does: every review in `train`, no row in the others.

    For the model that is put to use: it is evaluated nowhere, and no user or item with a review is unknown
    to it. Raises DataError for a repeated user-item pair and where there is no review.
    """
    inputs = {"reviews": Manifest.read(reviews_dir).fingerprint}
    manifest = Manifest("split", {"method": "all", "positive_rating": positive_rating}, inputs)
    if previous := manifest.current(out_dir):
        return previous
    with stage_output(manifest, out_dir) as folder:
        rows, scale = labelled(reviews_dir, positive_rating)
        manifest.facts |= scale
        _write_parts(rows, np.full(rows.height, TRAIN, np.int8), manifest, folder)
    return manifest


def _say_dropped(facts: dict[str, Any], reviews: int, min_reviews: int) -> None:
    """Print what share of the reviews is in no part, where that is more than a little."""
    dropped = facts["dropped"]
    if (few := dropped["min_reviews"]) > MUCH * reviews:
        print(
            f"note: {few:,} of {reviews:,} reviews are left out, as their user or item has fewer than "
            f"{min_reviews} (split.min_reviews, --min-reviews)",
            file=sys.stderr,
        )
    unknown = sum(count for name, count in dropped.items() if name.startswith("test_unknown"))
    if unknown > MUCH * facts["test_wanted"]:
        print(
            f"note: {unknown:,} of {facts['test_wanted']:,} test rows are left out, as no training row has "
            "their user or their item",
            file=sys.stderr,
        )


def _write_parts(rows: pl.DataFrame, part: np.ndarray, manifest: Manifest, folder: Path) -> None:
    """Write the rows of every part, and count them in the manifest."""
    manifest.facts["parts"] = {}
    manifest.rows["reviews"] = rows.height
    parts = dict(enumerate(SPLITS)) | ({COLD: "cold", SHOWN: "shown"} if (part == COLD).any() else {})
    for code, name in parts.items():
        part_rows = rows.filter(pl.Series(part == code))
        manifest.rows[name] = write_table(part_rows.to_arrow().cast(SPLIT), folder / name)
        manifest.facts["parts"][name] = {
            "rows": part_rows.height,
            "users": part_rows["user_id"].n_unique(),
            "items": part_rows["item_id"].n_unique(),
            "positives": int(part_rows["label"].sum()),
        }


def assign_parts(
    user: np.ndarray,
    item: np.ndarray,
    *,
    method: str,
    strict: bool,
    timestamp: np.ndarray | None = None,
    published_test: np.ndarray | None = None,
    min_reviews: int = 2,
    test_share: float = 0.25,
    val_share: float = 0.1,
    folds: int = 5,
    fold: int = 0,
    cold_items: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, dict]:
    """The part of every row, int8 [N] out of TRAIN, VAL, TEST, DROPPED, COLD and SHOWN, and facts for the
    manifest.

    Args:
        user, item: [N] integer codes in canonical row order.
        timestamp: [N] seconds, for the methods `last` and `time`.
        published_test: [N] bool, for method `published`.

    Raises DataError where training, test or a requested validation part is empty.
    """
    rng = np.random.default_rng(seed)
    part = np.full(len(user), TRAIN, np.int8)
    dropped = {}
    if not strict and method != "published":
        part[~active_rows(user, item, min_reviews)] = DROPPED
        dropped["min_reviews"] = int((part == DROPPED).sum())
        if dropped["min_reviews"] == len(part):
            raise _nothing_left("the filter", len(part), min_reviews)
    if cold_items:
        _set_apart(part, item, cold_items, seed)
    rows = np.flatnonzero(part == TRAIN)

    # The candidates for the test part, in the order in which they are tried.
    if method == "random":
        candidates = rng.permutation(rows)
        limit = round(test_share * len(rows))
    else:
        if method == "last":
            tested = _last_rows(user[rows], timestamp[rows], rng)
        elif method == "time":
            tested = latest_rows(timestamp[rows], test_share)
        elif method == "folds":
            tested = rng.permutation(len(rows)) % folds == fold
        else:
            tested = published_test[rows]
        candidates = rng.permutation(rows[tested])
        limit = len(candidates)
    if strict or method == "published":
        test = candidates[:limit]
    else:
        test = known_test_rows(user, item, rows, candidates, limit, exact=method == "random")
    part[test] = TEST
    facts = {"test_wanted": limit, "kept_for_training": limit - len(test), "dropped": dropped}

    if strict:
        remaining = rng.permutation(np.flatnonzero(part == TRAIN))
        number = round(val_share * len(remaining))
        if method == "time":
            part[remaining[latest_rows(timestamp[remaining], val_share)]] = VAL
        elif method == "last":  # the last before the tested one, as serving would be asked
            part[remaining[_last_rows(user[remaining], timestamp[remaining], rng)][:number]] = VAL
        else:
            part[remaining[:number]] = VAL
    if strict or method == "published":
        train = np.flatnonzero(part == TRAIN)
        active = active_rows(user[train], item[train], min_reviews)
        part[train[~active]] = DROPPED
        dropped["min_reviews"] = int((~active).sum())
        if not active.any():
            raise _nothing_left("training", len(train), min_reviews)
        for code, name in ((VAL, "val"), (TEST, "test")):
            dropped |= _drop_unknown(part, user, item, code, name)
    if cold_items:
        unknown = (part == COLD) & ~np.isin(user, user[part == TRAIN])
        dropped["cold_unknown_user"] = int(unknown.sum())
        part[unknown] = DROPPED
    _check_parts(part, dropped, method, strict and val_share > 0, cold_items > 0)
    return part, facts


def _set_apart(part: np.ndarray, item: np.ndarray, share: float, seed: int) -> None:
    """Move the rows of a share of the items out of TRAIN: to SHOWN the first MOST_SHOWN of each in random
    order, all except one at most, and to COLD the others."""
    rng = np.random.default_rng([seed, COLD])
    items = np.unique(item[part == TRAIN])
    number = max(1, round(share * len(items)))
    if number == len(items):
        raise DataError(
            f"--cold-items {share:g}: sets all {len(items)} items apart, so that none is left to train on; "
            "lower --cold-items (0: none is set apart), or use more items"
        )
    cold = rng.choice(items, number, replace=False)
    rows = rng.permutation(np.flatnonzero((part == TRAIN) & np.isin(item, cold)))
    rows = rows[np.argsort(item[rows], kind="stable")]
    _, first, number = np.unique(item[rows], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, number)
    shown = rank < np.repeat(np.minimum(MOST_SHOWN, number - 1), number)
    part[rows] = np.where(shown, SHOWN, COLD)


def active_rows(user: np.ndarray, item: np.ndarray, min_reviews: int) -> np.ndarray:
    """Which rows [N] stay when ids with fewer than `min_reviews` rows are dropped until none is left."""
    active = np.ones(len(user), bool)
    while True:
        stays = active.copy()
        for ids in (user, item):
            count = np.bincount(ids[active], minlength=ids.max(initial=0) + 1)
            stays &= count[ids] >= min_reviews
        if (stays == active).all():
            return active
        active = stays


def known_test_rows(
    user: np.ndarray, item: np.ndarray, rows: np.ndarray, candidates: np.ndarray, limit: int, exact: bool
) -> np.ndarray:
    """At most `limit` of the `candidates`, in their order, so that the remaining `rows` still have every user
    and every item.

    Trying them in order can find fewer than `limit` although another choice would reach it. With `exact`, the
    rows of a minimum edge cover are then kept for training and the test rows taken from the others: the
    largest possible test part (Gallai: vertices = maximum matching + minimum edge cover).
    """
    users_left = np.bincount(user[rows]).tolist()
    items_left = np.bincount(item[rows]).tolist()
    test = []
    columns = (column.tolist() for column in (candidates, user[candidates], item[candidates]))
    for row, u, i in zip(*columns, strict=True):
        if len(test) == limit:
            break
        if users_left[u] > 1 and items_left[i] > 1:
            users_left[u] -= 1
            items_left[i] -= 1
            test.append(row)
    if exact and len(test) < limit:
        covering = _edge_cover(user[candidates], item[candidates])
        test = candidates[~covering][:limit]
    return np.asarray(test, np.int64)


def _edge_cover(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Which rows [N] form a minimum edge cover of the users and items: a maximum matching, and one row for
    each id that it leaves out."""
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    graph = csr_matrix((np.ones(len(user), np.int8), (user, item)), shape=(len(users), len(items)))
    partner = maximum_bipartite_matching(graph, perm_type="column")
    covering = partner[user] == item
    for ids in (user, item):
        first = np.unique(ids, return_index=True)[1]
        covering[first[~np.isin(ids[first], ids[covering])]] = True
    return covering


def latest_rows(timestamp: np.ndarray, share: float) -> np.ndarray:
    """The rows from one point in time on, bool [N]: of all such points the one by which the number of rows
    comes nearest to `share` of them, the earlier of two. Rows of one time are on one side, and the first
    rows never among the latest.

    Args:
        timestamp: [N].
    """
    times, count = np.unique(timestamp, return_counts=True)
    later = len(timestamp) - np.cumsum(count)  # rows after each of the times
    if not len(times):
        return np.zeros(0, bool)
    return timestamp > times[np.argmin(np.abs(later - round(share * len(timestamp))))]


def _last_rows(user: np.ndarray, timestamp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The last row of every user with two rows or more, bool [N]; of equal times a random one: the order of
    ids must not tell it."""
    order = np.lexsort((rng.random(len(user)), timestamp, user))
    ends = np.append(user[order][1:] != user[order][:-1], True)[: len(user)]  # of no rows none
    last = np.zeros(len(user), bool)
    last[order[ends]] = True
    return last & (np.bincount(user)[user] > 1)


def _drop_unknown(
    part: np.ndarray, user: np.ndarray, item: np.ndarray, code: int, name: str
) -> dict[str, int]:
    """Drop rows of part `code` with a user or item that training does not have; the counts by reason."""
    train = part == TRAIN
    known_user, known_item = np.isin(user, user[train]), np.isin(item, item[train])
    reasons = {
        f"{name}_unknown_user": (part == code) & ~known_user & known_item,
        f"{name}_unknown_item": (part == code) & known_user & ~known_item,
        f"{name}_unknown_both": (part == code) & ~known_user & ~known_item,
    }
    for rows in reasons.values():
        part[rows] = DROPPED
    return {reason: int(rows.sum()) for reason, rows in reasons.items()}


def _codes(ids: pl.Series) -> np.ndarray:
    return ids.rank("dense").cast(pl.Int64).to_numpy() - 1


def _timestamps(rows: pl.DataFrame, reviews_dir: str | Path, method: str) -> np.ndarray | None:
    """The times of all reviews, [N]; None where the method needs none."""
    if method not in ("last", "time"):
        return None
    if missing := rows["timestamp"].null_count():
        raise DataError(
            f"{reviews_dir}: column 'timestamp' is missing in {missing} of {rows.height} reviews, and "
            f"--method {method} needs it; name the source's time column at ingest, or use --method random"
        )
    return rows["timestamp"].to_numpy()


def _published(rows: pl.DataFrame, reviews_dir: str | Path) -> np.ndarray:
    if (published := rows["split"]).null_count() == rows.height:
        raise DataError(
            f"{reviews_dir}: column 'split' is null everywhere: this source publishes no split; give its "
            "test file by `dlrrec ingest --test`, or take another split.method"
        )
    strange = rows.filter(~published.is_in(["train", "test"]).fill_null(False))
    if strange.height:
        raise DataError(
            f"{reviews_dir}: column 'split' must be 'train' or 'test', but {strange.height} reviews differ "
            f"(first: {strange['split'][0]!r} of user {strange['user_id'][0]}, item {strange['item_id'][0]})"
        )
    return (published == "test").to_numpy()


def _nothing_left(where: str, rows: int, min_reviews: int) -> DataError:
    return DataError(
        f"--min-reviews {min_reviews}: nothing is left of {where}'s {rows} reviews after users and items "
        "with fewer reviews are dropped; lower --min-reviews, or use more reviews"
    )


def _check_parts(part: np.ndarray, dropped: dict[str, int], method: str, val: bool, cold: bool) -> None:
    for code, name, flag, required in (
        (TEST, "test", "--test-share" if method in ("random", "time") else "--method", True),
        (VAL, "val", "--val-share", val),
        (COLD, "cold", "--cold-items", cold),
    ):
        if required and not (part == code).any():
            lost = sum(n for reason, n in dropped.items() if reason.startswith(name))
            change = f"take another --method than {method}" if flag == "--method" else f"raise {flag}"
            change += " (0: no such part)" if code != TEST else ""
            raise DataError(
                f"{flag}, --min-reviews: no {name} row is left ({lost} of them have a user or item that "
                f"training, with {(part == TRAIN).sum()} rows, does not know); lower --min-reviews, {change}"
                ", or use more reviews"
            )
