"""Samples for the eye: what a variant recommends to a few users, and its reduced vectors of some items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.data.entities import Entities, Items
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.evaluation.lists import list_scorer
from dlrrec_torchrec.ranking.full_ranking import Relevant
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.manifest import jsonable

USERS = 3
SHOWN = 10  # items of each list
MOST_ITEMS = 1_000  # whose vectors are kept


def example_lists(
    name: str, scorer: Scorer, entities: Entities, train: Rows, test: Rows, task: Relevant
) -> dict[str, Any]:
    """What the variant `name` recommends to the USERS users of `task` with the most training rows.

    The history shown is of the training rows, best rated first, the recommended items are those without a
    training or validation row, as in the evaluation of lists.

    Returns:
        variant; note, why there are no users or ""; users: each with `user`, `training_rows`, `best_rated`
        (`title`, `rating`) and `recommended` (`title`, `probability`, and `test_row`: "liked", "not liked",
        or null where the user has no test row of it).
    """
    rows = np.bincount(train.user, minlength=len(entities.users))
    places = np.argsort(-rows[task.users], kind="stable")[:USERS]
    ranker = list_scorer(scorer, entities, len(places))
    if isinstance(ranker, str):
        return {"variant": name, "note": ranker, "users": []}
    users = []
    for place in places:
        user = int(task.users[place])
        scores = np.array(ranker.list_scores(np.array([user]))[0], np.float64)
        scores[task.seen[place].indices] = -np.inf
        best = np.argsort(-scores, kind="stable")[:SHOWN]
        best = best[np.isfinite(scores[best])]
        logits = scorer.logits(scorer.pairs(entities, np.full(len(best), user), best))
        own, held_out = train.user == user, test.user == user
        order = np.argsort(-train.rating[own], kind="stable")[:SHOWN]
        labels = dict(zip(test.item[held_out].tolist(), test.label[held_out].tolist(), strict=True))
        said = {None: None, 1.0: "liked", 0.0: "not liked"}
        users.append(
            {
                "user": entities.users.ids[user],
                "training_rows": int(rows[user]),
                "best_rated": [
                    {"title": _title(entities.items, item), "rating": float(rating)}
                    for item, rating in zip(train.item[own][order], train.rating[own][order], strict=True)
                ],
                "recommended": [
                    {
                        "title": _title(entities.items, item),
                        "probability": float(probability),
                        "test_row": said[labels.get(int(item))],
                    }
                    for item, probability in zip(best, scorer.calibration.probability(logits), strict=True)
                ],
            }
        )
    return {"variant": name, "note": "" if users else "no user has an unseen liked test row", "users": users}


def write_samples(
    folder: Path,
    name: str,
    scorer: Scorer,
    entities: Entities,
    rows: tuple[Rows, Rows],
    task: Relevant,
    category_names: list[str],
) -> None:
    """`examples.json`, as `example_lists` returns, and `vectors.parquet` in `folder`.

    The latter has up to MOST_ITEMS items, drawn among those with a training row: `item` (code), `title`,
    `category` (the item's first, "" without one) and `vector` f32, its reduced content vectors side by side.
    Without item content in the model it has no rows.

    Args:
        rows: of training and test.
    """
    examples = jsonable(example_lists(name, scorer, entities, *rows, task))
    text = json.dumps(examples, indent=2, ensure_ascii=False)
    (folder / "examples.json").write_text(text + "\n", encoding="utf-8")
    items = entities.items
    codes = np.flatnonzero(items.count > 0)
    draw = np.random.default_rng(0)
    codes = np.sort(draw.choice(codes, min(MOST_ITEMS, len(codes)), replace=False))
    vectors = scorer.reduced_items(codes)
    codes = codes if vectors.shape[1] else codes[:0]
    first = items.category[codes, 0] if items.category.shape[1] else np.full(len(codes), len(category_names))
    table = {
        "item": pa.array(codes, pa.int32()),
        "title": [_title(items, code) for code in codes],
        "category": [category_names[c] if c < len(category_names) else "" for c in first],
        "vector": pa.array(list(vectors[: len(codes)]), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), folder / "vectors.parquet", compression="zstd")


def _title(items: Items, code: int) -> str:
    return items.titles[code] or items.ids[code]
