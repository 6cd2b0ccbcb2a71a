"""Examples for the eye: what a variant recommends to a few users."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlrrec_torchrec.data.entities import Entities, Items
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.evaluation.lists import list_scorer
from dlrrec_torchrec.ranking.full_ranking import Relevant
from dlrrec_torchrec.serving.score import Scorer

USERS = 3
SHOWN = 10  # items of each list


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


def _title(items: Items, code: int) -> str:
    return items.titles[code] or items.ids[code]
