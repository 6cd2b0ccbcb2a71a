"""What content alone can do: lists in which no item's id counts, as of new items.

Two recommenders of every variant. `list head`: its list logits, the item's side without the id. `likes`: the
sum, over the user's liked training items, of the cosine of their reduced item vectors with the item's; no
user vector takes part, so it tells what the towers, and the contrastive terms that shape them, know of items.

Two kinds of tasks. `all items`: those of the shards, with the content of all their training reviews; relevant
are the user's liked test rows. `new items, k reviews` (with split.cold_items): those without a training row,
with their metadata and the first k reviews that the split shows of them; relevant are the liked rows of
`split/cold`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from dlrrec_torchrec.data.entities import Entities, column_matrix
from dlrrec_torchrec.evaluation.intervals import mean_difference
from dlrrec_torchrec.evaluation.lists import interval_facts
from dlrrec_torchrec.prepare.vocabulary import category_codes
from dlrrec_torchrec.ranking.full_ranking import Ranking, Relevant, Scores, rank_lists
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.modality import BUILT_IN, Modality
from dlrrec_torchrec.store.schema import with_vectors
from dlrrec_torchrec.store.shard_facts import ShardFacts

METRICS = ("recall@20", "ndcg@20")
ALL_ITEMS = "all items"


@dataclasses.dataclass(frozen=True)
class ContentTask:
    """Items that are known by their content, and who should find which of them.

    Attributes:
        vectors: modality -> f16 [n, V], zeros where missing.
        category: i32 [n, slots], padded with the number of types.
        relevant: over these items.
    """

    vectors: Mapping[str, np.ndarray]
    category: np.ndarray
    relevant: Relevant

    def chance(self, cutoff: int) -> float | None:
        """Recall at `cutoff` of lists in random order, in expectation; None without users."""
        unseen = len(self.category) - np.diff(self.relevant.seen.indptr)
        return float(np.minimum(1.0, cutoff / unseen).mean()) if len(unseen) else None


class ColdLists:
    """The evaluation of content alone on one set of shards.

    Args:
        tasks: by name (`all_items`, `new_items`).
        liked: [users, items], the liked training rows, for `likes`.
        entities: whose item vectors `liked` looks up.
    """

    def __init__(
        self, tasks: Mapping[str, ContentTask], liked: sparse.csr_matrix, entities: Entities
    ) -> None:
        self._tasks, self._liked, self._entities = tasks, liked, entities
        self._found: dict[str, dict[str, dict[str, Ranking]]] = {name: {} for name in tasks}
        self._notes: list[str] = []

    def rank_model(self, name: str, scorer: Scorer) -> None:
        """Measure a trained variant by both ways; a note says why where one is left out."""
        modalities = [m.name for m in scorer.spec.modalities if m.side == "item"]
        if not modalities:
            self._notes.append(f"content alone, '{name}': the model has no vector of items")
            return
        if not scorer.has_lists:
            self._notes.append(f"content alone, '{name}', list head: left out, the model has none")
        known = scorer.content_directions({m: self._entities.vectors[m] for m in modalities})
        profiles = self._liked @ known  # the sum of cosines is the product with the sum
        for task_name, task in self._tasks.items():
            vectors = {m: task.vectors[m] for m in modalities}
            directions = scorer.content_directions(vectors)
            ways: dict[str, Scores] = {}
            if directions.any():
                ways["likes"] = lambda users, d=directions: profiles[users] @ d.T
            else:
                self._notes.append(f"content alone, '{name}', likes of {task_name}: no item has content")
            if scorer.has_lists:
                ways["list head"] = lambda users, t=task, v=vectors: scorer.content_scores(
                    users, v, t.category
                )
            counts = np.zeros(len(task.category))
            found = {way: rank_lists(scores, task.relevant, counts, (20,)) for way, scores in ways.items()}
            self._found[task_name][name] = found

    def result(self) -> dict[str, Any]:
        """The part "cold" of `metrics.json`.

        Keys: `tasks`, name -> users, items, relevant (a user has on average), chance (Recall@20 of lists in
        random order) and `models`, variant -> way ("likes", "list head") -> metric of METRICS -> `mean`,
        `low` and `high` (95 % over users) and, of all but the first variant, `gap`, which is the first one's
        metric less this one's (`interval_facts`); `notes`.
        """
        tasks = {}
        for name, task in self._tasks.items():
            users = len(task.relevant.users)
            tasks[name] = {
                "users": users,
                "items": len(task.category),
                "chance": task.chance(20),
                "relevant": task.relevant.relevant.nnz / users if users else None,
                "models": {
                    model: {
                        way: {metric: self._facts(name, model, way, metric) for metric in METRICS}
                        for way in found
                    }
                    for model, found in self._found[name].items()
                },
            }
        return {"tasks": tasks, "notes": self._notes}

    def _facts(self, task: str, model: str, way: str, metric: str) -> dict[str, Any]:
        values = self._found[task][model][way].per_user[metric]
        mean = mean_difference(values, np.zeros(len(values)))
        facts = {"mean": mean.difference, "low": mean.low, "high": mean.high}
        first = next(iter(self._found[task].items()))
        if first[0] != model and way in first[1]:
            facts["gap"] = interval_facts(mean_difference(first[1][way].per_user[metric], values))
        return facts


def all_items(entities: Entities, relevant: Relevant) -> ContentTask:
    """The items of the shards by their content."""
    return ContentTask(entities.vectors, entities.items.category, relevant)


def new_items(
    split_dir: Path, content_dir: Path, shards_dir: Path, facts: ShardFacts, entities: Entities, users: int
) -> dict[str, ContentTask]:
    """A task for each number of reviews that is known of the items in `split_dir`/cold; none without them.

    Vectors of modalities that extract does not make (prepare.vectors) count as missing.

    Args:
        users: drawn of those who like any, at most.

    Raises DataError for damaged tables.
    """
    if not (split_dir / "cold").exists():
        return {}
    rows = read_table(split_dir / "cold", schema.SPLIT, ["user_id", "item_id", "label"])
    table = read_table(content_dir / "cold", schema.COLD_CONTENT)
    ids, shown = np.array(table["id"].to_pylist()), table["shown"].to_numpy()
    names = np.unique(ids)
    liked = rows["label"].to_numpy() > 0.5
    user = np.array([entities.users.codes[name] for name in rows["user_id"].to_pylist()])
    item = np.searchsorted(names, np.array(rows["item_id"].to_pylist()))
    shape = facts.users, len(names)
    found = sparse.csr_matrix((np.ones(int(liked.sum())), (user[liked], item[liked])), shape)
    relevant = Relevant.of(found, sparse.csr_matrix(shape)).sample(users)
    vocabulary = (shards_dir / "categories.txt").read_text(encoding="utf-8").splitlines()
    category = category_codes(table["categories"], vocabulary, facts.category_slots, facts.category_types)
    item_modalities = [m for m in facts.modalities if m.side == "item"]
    vectors = {m.name: _cold_vectors(content_dir / "cold", m, len(ids)) for m in item_modalities}
    tasks = {}
    for number in np.unique(shown):
        chosen = np.flatnonzero(shown == number)
        chosen = chosen[np.argsort(ids[chosen])]
        title = f"new items, {number} {'review' if number == 1 else 'reviews'}"
        known = {name: matrix[chosen] for name, matrix in vectors.items()}
        tasks[title] = ContentTask(known, category[chosen].astype(np.int32), relevant)
    return tasks


def _cold_vectors(folder: Path, modality: Modality, rows: int) -> np.ndarray:
    """f16 [rows, V] of the table of cold items; zeros where missing."""
    if modality.name not in BUILT_IN:
        return np.zeros((rows, modality.dim), np.float16)
    column = f"{modality.kind}_vector"
    kind = with_vectors(pa.schema([]), {column: modality.dim})
    return column_matrix(read_table(folder, kind)[column], 0)
