"""Full ranking: every item that a user has not seen, ranked by score, against the held-out positives.

For a user with the relevant items R (none of them seen), and the first k of the ranking, with rel(i) = 1
where the item at rank i = 1, 2, ... is in R:

    recall@k = sum of rel(i) over i <= k / |R|
    ndcg@k   = sum of rel(i) / log2(i + 1) over i <= k / sum of 1 / log2(i + 1) over i <= min(|R|, k)
    mrr@k    = 1 / the least i <= k with rel(i) = 1; 0 where there is none
    map@k    = sum of rel(i) · (relevant items up to i) / i over i <= k / |R|
    hit@k    = 1 where rel(i) = 1 for an i <= k, else 0

Recall is divided by all relevant items, so it cannot reach 1 for a user with more than k of them; so is MAP,
as in trec_eval. Järvelin and Kekäläinen 2002 for NDCG, with gains 0 and 1.

Over the catalogue:

    coverage@k   = share of all items that are among anybody's first k
    popularity@k = mean, over a user's first k, of the item's popularity percentile

The percentile of an item is the share of the items with fewer training interactions, plus half the share of
those with as many (itself included): between 0 and 1, and .5 on average over the catalogue. `popularity of
relevant` is the same over R: a list that is as popular as what people choose has equal numbers.

Equal scores are ranked by item code, so a result does not depend on how the users are divided into blocks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from scipy import sparse

from dlrrec_torchrec.features.machine_code import machine_code
from dlrrec_torchrec.metrics import mean_ranks
from dlrrec_torchrec.store.errors import DataError

CUTOFFS = (10, 20, 50)
PER_CUTOFF = ("recall", "ndcg", "mrr", "map", "hit", "popularity")  # of each user
_BLOCK_BYTES = 64 << 20  # of one block of scores; two are held at a time

Scores = Callable[[np.ndarray], np.ndarray]  # user codes int64 [n] -> f32 [n, items]


@dataclasses.dataclass(frozen=True)
class Relevant:
    """What is to be found: the users that have unseen relevant items, and what they have seen.

    Attributes:
        users: int64 [n], ascending.
        relevant, seen: boolean CSR [n, items], row r of user `users[r]`; indices ascend; no item in both.
    """

    users: np.ndarray
    relevant: sparse.csr_matrix
    seen: sparse.csr_matrix

    @staticmethod
    def of(relevant: sparse.spmatrix, seen: sparse.spmatrix, users: np.ndarray | None = None) -> Relevant:
        """From matrices [all users, items] whose non-zeros mark pairs.

        A relevant item that is seen cannot be recommended and does not count; users without another one are
        left out.

        Args:
            users: int64 codes, the users to choose from (default: all).
        """
        relevant, seen = _marked(relevant), _marked(seen)
        relevant = _marked(relevant - relevant.multiply(seen))
        candidates = np.arange(relevant.shape[0]) if users is None else np.unique(users)
        kept = candidates[np.diff(relevant.indptr)[candidates] > 0].astype(np.int64)
        return Relevant(kept, relevant[kept], seen[kept])

    def sample(self, users: int, seed: int = 0) -> Relevant:
        """At most `users` of the users, drawn without replacement."""
        if len(self.users) <= users:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.users), users, replace=False))
        return Relevant(self.users[rows], self.relevant[rows], self.seen[rows])


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a recommender's lists are worth.

    Attributes:
        users: int64 [n].
        per_user: "recall@10", ... (each of PER_CUTOFF at each cut-off) -> f64 [n]; and
            "popularity of relevant" -> f64 [n].
        catalogue: "coverage@10", ... -> a number.
    """

    users: np.ndarray
    per_user: dict[str, np.ndarray]
    catalogue: dict[str, float]

    def means(self) -> dict[str, float]:
        """Every per-user metric's mean over the users (NaN without users), and the catalogue's."""
        means = {k: float(v.mean()) if len(v) else np.nan for k, v in self.per_user.items()}
        return means | self.catalogue


def popularity_percentile(counts: np.ndarray) -> np.ndarray:
    """The popularity percentile f64 [items] of items with these training interactions, [items]."""
    return (mean_ranks(counts) - 0.5) / max(len(counts), 1)


def rank_lists(
    scores: Scores,
    task: Relevant,
    train_counts: np.ndarray,
    cutoffs: Sequence[int] = CUTOFFS,
    block_users: int | None = None,
    threads: int = 0,
) -> Ranking:
    """Rank every unseen item for every user of `task`.

    `scores` is called in this thread, for one block of users after the other; the lists of a block are made
    on all cores while the next one is scored. Memory: two blocks of scores, and the first max(cutoffs) items
    of each user of a block.

    Args:
        scores: int64 [n] user codes -> f32 [n, items], higher is better. A score of -inf ranks last.
        train_counts: [items] training interactions, for popularity.
        block_users: users scored at once (default: as many as have 64 MiB of scores).
        threads: 0: all cores. Neither changes the result.

    Raises:
        DataError: a score that is not a number.
        ValueError: scores of another shape.
    """
    users, items = task.relevant.shape
    cutoffs = tuple(sorted(set(cutoffs)))
    depth, threads = cutoffs[-1], threads or os.cpu_count() or 1
    block_users = block_users or max(1, _BLOCK_BYTES // (4 * max(items, 1)))
    percentile = popularity_percentile(train_counts)
    discount = 1 / np.log2(np.arange(2, depth + 2))
    result = np.zeros((users, len(PER_CUTOFF), len(cutoffs)))
    recommended = np.zeros((len(cutoffs), items), bool)

    def rank(block: np.ndarray, first: int, last: int, at: int) -> np.ndarray:
        top, bad = _top(
            block[first - at : last - at], *_rows(task.seen, first, last), np.int64(min(depth, items))
        )
        if bad >= 0:
            raise DataError(f"lists: user {task.users[first + bad]} has a score that is not a number")
        relevant = _rows(task.relevant, first, last)
        _measure(top, *relevant, np.array(cutoffs), discount, percentile, result[first:last])
        return top

    def collect(pending: list[Future]) -> None:
        for future in pending:
            top = future.result()
            for number, cutoff in enumerate(cutoffs):
                codes = top[:, :cutoff]
                recommended[number, codes[codes >= 0]] = True

    pending: list[Future] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, users, block_users):
            end = min(start + block_users, users)
            block = np.ascontiguousarray(scores(task.users[start:end]), np.float32)
            if block.shape != (end - start, items):
                raise ValueError(f"scores have shape {block.shape}, not {(end - start, items)}")
            collect(pending)
            step = max(1, -(-(end - start) // threads))
            pending = [
                pool.submit(rank, block, first, min(first + step, end), start)
                for first in range(start, end, step)
            ]
        collect(pending)
    per_user = {
        f"{name}@{cutoff}": result[:, row, column]
        for row, name in enumerate(PER_CUTOFF)
        for column, cutoff in enumerate(cutoffs)
    }
    counts = np.diff(task.relevant.indptr)
    per_user["popularity of relevant"] = task.relevant @ percentile / np.maximum(counts, 1)
    shares = recommended.mean(axis=1) if items and users else np.full(len(cutoffs), np.nan)
    coverage = {f"coverage@{c}": float(share) for c, share in zip(cutoffs, shares, strict=True)}
    return Ranking(task.users, per_user, coverage)


def _marked(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """The non-zeros as ones, in sorted CSR without duplicates."""
    marked = sparse.csr_matrix(matrix, copy=True)
    marked.sum_duplicates()
    marked.eliminate_zeros()
    marked.data = np.ones(marked.nnz, np.float32)
    return marked


def _rows(matrix: sparse.csr_matrix, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Row pointers i64 [n + 1] and column codes i64 of some rows; the pointers count from 0."""
    ptr = matrix.indptr[first : last + 1].astype(np.int64)
    return ptr - ptr[0], matrix.indices[ptr[0] : ptr[-1]].astype(np.int64)


@machine_code
def _top(scores, seen_ptr, seen_idx, depth):
    """The first `depth` unseen items of each row i64 [n, depth], padded with -1; and the first row with a
    NaN, or -1.

    A sorted list of the best is kept while the items pass in the order of their codes: a later item of equal
    score goes behind the earlier one, or is not taken.
    """
    users, items = scores.shape
    top = np.full((users, depth), -1, np.int64)
    best = np.empty(depth, np.float32)
    for row in range(users):
        seen, end, size = seen_ptr[row], seen_ptr[row + 1], 0
        for item in range(items):
            if seen < end and seen_idx[seen] == item:
                seen += 1
                continue
            score = scores[row, item]
            if score != score:
                return top, row
            if size == depth and not score > best[depth - 1]:
                continue
            at = size if size < depth else depth - 1
            size = at + 1
            while at > 0 and score > best[at - 1]:
                best[at], top[row, at] = best[at - 1], top[row, at - 1]
                at -= 1
            best[at], top[row, at] = score, item
    return top, -1


@machine_code
def _measure(top, relevant_ptr, relevant_idx, cutoffs, discount, percentile, result):
    """Fill `result` f64 [n, len(PER_CUTOFF), cutoffs] from the lists `top` i64 [n, depth]."""
    users, depth = top.shape
    for row in range(users):
        begin, end = relevant_ptr[row], relevant_ptr[row + 1]
        total, column, listed = end - begin, 0, 0
        found, gain, ideal, first, precisions, popularity = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for rank in range(1, cutoffs[-1] + 1):
            if rank <= total:
                ideal += discount[rank - 1]
            if rank <= depth and top[row, rank - 1] >= 0:
                item = top[row, rank - 1]
                listed += 1
                popularity += percentile[item]
                at = begin + np.searchsorted(relevant_idx[begin:end], item)
                if at < end and relevant_idx[at] == item:
                    found += 1
                    gain += discount[rank - 1]
                    precisions += found / rank
                    if found == 1:
                        first = 1.0 / rank
            if rank == cutoffs[column]:
                if total:
                    result[row, 0, column] = found / total
                    result[row, 1, column] = gain / ideal
                    result[row, 2, column] = first
                    result[row, 3, column] = precisions / total
                    result[row, 4, column] = 1.0 if found else 0.0
                result[row, 5, column] = popularity / listed if listed else 0.0
                column += 1
