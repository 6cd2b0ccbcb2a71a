"""Lists: every recommender ranks all items that a user has not seen, measured by the test rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.data.entities import Entities
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.evaluation.intervals import Interval, auc_difference, mean_difference
from dlrrec_torchrec.evaluation.peers.histories import Histories, liked_matrix, pair_matrix
from dlrrec_torchrec.evaluation.peers.list_peers import list_peers
from dlrrec_torchrec.ranking.full_ranking import Ranking, Relevant, Scores, rank_lists
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.progress import track
from dlrrec_torchrec.store.shard_facts import ShardFacts

PROTOCOL = "all items that the user has no training or validation row of; relevant: test rows with label 1"
COMPARED = ("recall@20", "ndcg@20")  # with intervals
MOST_PAIRS = 2_000_000  # that a model without a list head scores, one by one


class ListScorer(Protocol):
    """What ranks all items for a user in one go."""

    def list_scores(self, users: np.ndarray) -> np.ndarray:
        """int64 [n] user codes -> f32 [n, items], higher is better."""


class RatingLists:
    """The items by a rating model's logit of every (user, item) pair."""

    def __init__(self, scorer: Scorer, entities: Entities) -> None:
        self._scorer, self._entities = scorer, entities

    def list_scores(self, users: np.ndarray) -> np.ndarray:
        items = len(self._entities.items)
        pairs = np.repeat(users, items), np.tile(np.arange(items), len(users))
        logits = self._scorer.logits(self._scorer.pairs(self._entities, *pairs))
        return logits.astype(np.float32).reshape(len(users), items)


def list_scorer(scorer: Scorer, entities: Entities, users: int) -> ListScorer | str:
    """How a trained variant ranks all items for `users` users: itself, where it has a list head;
    else by its rating logit; or why it does not."""
    if scorer.has_lists:
        return scorer
    items = len(entities.items)
    if users * items > MOST_PAIRS:
        return (
            f"it has no list head, and {users:,} users x {items:,} items are more than {MOST_PAIRS:,} pairs; "
            "lower evaluate.list_users (--list-users)"
        )
    return RatingLists(scorer, entities)


class Lists:
    """The evaluation of lists on one set of shards.

    Args:
        train, validation, test: the rows of the splits.
        most_users: users that are drawn, where more have a relevant item.
        sequences: as in `Histories`.

    Attributes:
        task: the users, what they should find, and what they have seen.
        histories: the training rows.
    """

    def __init__(
        self,
        train: Rows,
        validation: Rows,
        test: Rows,
        facts: ShardFacts,
        most_users: int,
        sequences: Sequences | None = None,
    ) -> None:
        shape = facts.users, facts.items
        in_train, in_validation = (pair_matrix(rows.user, rows.item, *shape) for rows in (train, validation))
        everyone = Relevant.of(liked_matrix(test, *shape), in_train + in_validation)
        self.task, self._all_users, self._items = everyone.sample(most_users), len(everyone.users), shape[1]
        self.histories = Histories.of(train, *shape, facts.rating_range, sequences)
        self._validation = Relevant.of(liked_matrix(validation, *shape), in_train)
        self._rankings: dict[str, dict[str, Ranking]] = {"models": {}, "peers": {}}
        self._chosen: dict[str, str] = {}
        self._notes: list[str] = []

    def rank_model(self, name: str, scorer: Scorer, entities: Entities) -> None:
        """Measure the lists of a trained variant; a note says why where that is not done."""
        ranker = list_scorer(scorer, entities, len(self.task.users))
        if isinstance(ranker, str):
            self._notes.append(f"lists of '{name}' left out: {ranker}")
        else:
            self._rank("models", name, ranker.list_scores)

    def rank_peers(self) -> None:
        """Fit every peer and measure its lists."""
        peers = list(list_peers(self.histories, self._validation))
        for name, fit in track(peers, "lists of peers", len(peers), transient=True):
            if isinstance(fit, str):
                self._notes.append(f"lists of peer '{name}' left out: {fit}")
                continue
            peer = fit()
            self._chosen[name] = peer.settings
            self._rank("peers", name, peer.scores)

    def _rank(self, group: str, name: str, scores: Scores) -> None:
        self._rankings[group][name] = rank_lists(scores, self.task, self.histories.counts)

    def result(self, folder: Path) -> dict[str, Any]:
        """The part "lists" of `metrics.json`; every user's metrics go to `folder`/NAME.parquet.

        Keys: protocol; users, of all_users with a relevant item; items; relevant, how many a user has on
        average; models and peers, name -> metrics of `Ranking.means`; chosen, peer -> its settings in words;
        differences, metric -> model -> peer -> `interval_facts`; notes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, ranking in self._named():
            table = {"user": ranking.users.astype(np.int32)} | ranking.per_user
            path = folder / f"{file_name(name)}.parquet"
            pq.write_table(pa.table(table), path, compression="zstd")
        peers = self._rankings["peers"]
        differences = {}
        for metric in COMPARED if peers and len(self.task.users) else ():
            differences[metric] = {
                name: {
                    peer: interval_facts(mean_difference(ranking.per_user[metric], other.per_user[metric]))
                    for peer, other in peers.items()
                }
                for name, ranking in self._rankings["models"].items()
            }
        users = len(self.task.users)
        return {
            "protocol": PROTOCOL,
            "users": users,
            "all_users": self._all_users,
            "items": self._items,
            "relevant": self.task.relevant.nnz / users if users else None,
            **{
                group: {name: ranking.means() for name, ranking in rankings.items()}
                for group, rankings in self._rankings.items()
            },
            "chosen": self._chosen,
            "differences": differences,
            "notes": self._notes,
        }

    def _named(self) -> Iterator[tuple[str, Ranking]]:
        for group, rankings in self._rankings.items():
            for name, ranking in rankings.items():
                yield (name if group == "models" else f"peer-{name}"), ranking


def auc_differences(
    rows: Rows, models: dict[str, np.ndarray], rivals: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, Any]]]:
    """AUC of each model less that of each rival: model -> rival -> `interval_facts`.

    Args:
        models, rivals: name -> scores [N] of the rows.
    """
    return {
        name: {
            rival: interval_facts(auc_difference(rows.label, score, other, rows.user))
            for rival, other in rivals.items()
        }
        for name, score in models.items()
    }


def interval_facts(interval: Interval) -> dict[str, Any]:
    """`difference`, `low`, `high` of the 95 % interval, and the `verdict`: better, worse or level."""
    return {
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "verdict": interval.verdict,
    }


def file_name(name: str) -> str:
    """The name of a baseline's or peer's file: without spaces and commas."""
    return name.replace(",", "").replace(" ", "-")
