"""The compiled scorers: exact neighbours of a range of anchors over CSR, in one thread, without the GIL.

SWING, for an anchor i (an item; the roles swap for users) with users U_i numbered 0..d-1:

1. Walk I_u for every u in U_i and find the items met more than once: those with |U_i ∩ U_j| >= 2. All
   others share no pair of users with i; in a sparse graph these are the great majority, and cost no more
   than this walk.
2. Take the users a = 0..d-1 in turn, keeping for each such j the list C_j of the earlier users b < a that
   hold both i and j. One pass over the C_j of a's items counts row[b] = |I_a ∩ I_b| - 1 for every b at once;
   a second adds w_a Σ_{b ∈ C_j} w_b / (alpha + |I_a ∩ I_b|) to the score of j.

Users are only paired over items that they share besides i, so two whole histories are never intersected, and
one row of counters, not a matrix, serves anchors of any popularity.

The other similarities need Σ w_u over U_i ∩ U_j only, which one walk adds up.

The order of every sum depends on the graph only: the result is the same, bit for bit, for any
partition. All of it is one file, because numba's disk cache sees changes of the caller's file only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from swing.compiled import compiled, prefetch

SLOTS = 1 << 30  # `Scratch.last` has a time below this, or this plus a slot
PLAIN, COSINE, JACCARD = range(3)  # how `overlap_range` scales the overlap


class Edges(NamedTuple):
    """The arrays of `interactions.Graph`, read-only: the users of each anchor, and the same edges by user."""

    anchor_ptr: np.ndarray  # i64[anchors + 1]
    anchor_idx: np.ndarray  # i32[edges], ascending in each row
    user_ptr: np.ndarray  # i64[users + 1]
    user_idx: np.ndarray  # i32[edges], ascending in each row
    user_weight: np.ndarray  # f64[users]
    anchor_size: np.ndarray  # i32[anchors]


class Scratch(NamedTuple):
    """Working memory of one thread, allocated once; `score_range` leaves it ready for its next call.

    A hit is a step of the walk to an item met before on the same walk; a slot stands for an item with a hit.
    """

    clock: np.ndarray  # i64[1]: time of the next walk's first user; each user takes one tick
    last: np.ndarray  # i32[anchors]: when the item was first met on a walk, or SLOTS + its slot
    hit: np.ndarray  # i32[steps]: slot of the hit
    owner: np.ndarray  # i32[steps]: position of the hit's user
    members: np.ndarray  # i32[2 * steps]: the lists C_j one after the other
    code: np.ndarray  # i32[slots]: the item
    first: np.ndarray  # i32[slots]: position of the user who met it first
    start: np.ndarray  # i32[slots]: where its list begins
    end: np.ndarray  # i32[slots]: length of the list in step 1, where it ends so far in step 2
    score: np.ndarray  # f64[slots]
    row: np.ndarray  # i32[degree], all 0: |I_a ∩ I_b| - 1 for the current user a
    weight: np.ndarray  # f64[degree]: weights of the anchor's users


def make_scratch(anchors: int, steps: int, degree: int) -> Scratch:
    """Scratch for `anchors` anchors, walks of at most `steps` edges and `degree` users of an anchor."""
    slots = min(anchors, steps)
    return Scratch(
        np.zeros(1, np.int64),
        np.full(anchors, -1, np.int32),
        *[np.empty(size, np.int32) for size in (steps, steps, 2 * steps, slots, slots, slots, slots)],
        score=np.empty(slots, np.float64),
        row=np.zeros(degree, np.int32),
        weight=np.empty(degree, np.float64),
    )


class OverlapScratch(NamedTuple):
    """Working memory of one thread for `overlap_range`, which leaves it ready for its next call."""

    total: np.ndarray  # f64[anchors], all 0: Σ w_u over the shared users
    code: np.ndarray  # i32[slots + 1]: the items met
    score: np.ndarray  # f64[slots]


def make_overlap_scratch(anchors: int, steps: int) -> OverlapScratch:
    """Scratch for `anchors` anchors and walks of at most `steps` edges."""
    slots = min(anchors, steps)
    return OverlapScratch(np.zeros(anchors), np.empty(slots + 1, np.int32), np.empty(slots))


@compiled
def _fetch_ahead(edge, edges):
    """The rows of an anchor's users are scattered in memory: prefetch two lines of each some users ahead."""
    final = edges.anchor_idx.size - 1
    prefetch(edges.user_ptr, edges.anchor_idx[min(edge + 12, final)])
    row = edges.user_ptr[edges.anchor_idx[min(edge + 6, final)]]
    prefetch(edges.user_idx, row)
    prefetch(edges.user_idx, row + 16)


@compiled
def _walk(anchor, edges, scratch):
    """Step 1: the hits in order, a slot and an empty list for each of their items. Returns (hits, slots)."""
    anchor_ptr, anchor_idx, user_ptr, user_idx, _, _ = edges
    last, hit, owner, members = scratch.last, scratch.hit, scratch.owner, scratch.members
    code, first, start, end = scratch.code, scratch.first, scratch.start, scratch.end
    row_begin, row_end = anchor_ptr[anchor], anchor_ptr[anchor + 1]
    begin = scratch.clock[0]
    if begin + row_end - row_begin >= SLOTS:
        last[:] = -1
        begin = 0
    now, hits, slots = begin, 0, 0
    for edge in range(row_begin, row_end):
        _fetch_ahead(edge, edges)
        user = anchor_idx[edge]
        for step in range(user_ptr[user], user_ptr[user + 1]):
            item = user_idx[step]
            time_met = last[item]
            if time_met < begin:  # first time on this walk: nearly always, so the branch is predicted
                last[item] = -1 if item == anchor else now
                continue
            slot = time_met - SLOTS
            if slot < 0:
                slot = slots
                slots += 1
                last[item] = SLOTS + slot
                code[slot] = item
                first[slot] = time_met - begin
                end[slot] = 1
            end[slot] += 1
            hit[hits] = slot
            owner[hits] = now - begin
            hits += 1
        now += 1
    scratch.clock[0] = now
    offset = 0
    for slot in range(slots):
        last[code[slot]] = -1
        members[offset] = first[slot]
        start[slot] = offset
        offset += end[slot]
        end[slot] = start[slot] + 1
    return hits, slots


@compiled
def _score(hits, inverse, scratch):
    """Step 2: add up `scratch.score`. Returns the pair updates of one pass."""
    hit, owner, members = scratch.hit, scratch.owner, scratch.members
    start, end, score, row, weight = scratch.start, scratch.end, scratch.score, scratch.row, scratch.weight
    updates, h = 0, 0
    while h < hits:
        begin, a, pairs = h, owner[h], 0
        while h < hits and owner[h] == a:
            slot = hit[h]
            tail = end[slot]
            for y in range(start[slot], tail):
                row[members[y]] += 1
            pairs += tail - start[slot]
            members[tail] = a
            end[slot] = tail + 1
            h += 1
        for g in range(begin, h):
            slot = hit[g]
            head, tail = start[slot], end[slot] - 1
            even, odd = 0.0, 0.0  # two chains of additions hide their latency; the order is fixed
            for y in range(head, tail - 1, 2):
                b, c = members[y], members[y + 1]
                even += weight[b] * inverse[row[b]]
                odd += weight[c] * inverse[row[c]]
            if (tail - head) & 1:
                b = members[tail - 1]
                even += weight[b] * inverse[row[b]]
            score[slot] += weight[a] * (even + odd)
        if pairs * 8 < a:
            for g in range(begin, h):
                for y in range(start[hit[g]], end[hit[g]] - 1):
                    row[members[y]] = 0
        else:
            row[:a] = 0
        updates += pairs
    return updates


@compiled
def _overlap(anchor, edges, measure, scratch):
    """The items that share a user with the anchor, and their scores. Returns (items, additions)."""
    anchor_ptr, anchor_idx, user_ptr, user_idx, user_weight, size = edges
    total, code, score = scratch.total, scratch.code, scratch.score
    row_begin, row_end = anchor_ptr[anchor], anchor_ptr[anchor + 1]
    total[anchor] = 1.0  # as if met before, so that it is not its own neighbour
    slots, steps = 0, 0
    for edge in range(row_begin, row_end):
        _fetch_ahead(edge, edges)
        user = anchor_idx[edge]
        weight, begin, end = user_weight[user], user_ptr[user], user_ptr[user + 1]
        for step in range(begin, end):
            item = user_idx[step]
            code[slots] = item
            slots += total[item] == 0.0
            total[item] += weight
        steps += end - begin
    for slot in range(slots):
        item = code[slot]
        shared, total[item] = total[item], 0.0
        if measure == COSINE:
            shared /= math.sqrt(np.float64(size[anchor]) * np.float64(size[item]))
        elif measure == JACCARD:
            shared /= np.float64(size[anchor]) + np.float64(size[item]) - shared
        score[slot] = shared
    total[anchor] = 0.0
    return slots, steps - (row_end - row_begin)


@compiled
def _better(score, code, than_score, than_code):
    return score > than_score or (score == than_score and code < than_code)


@compiled
def _sift_down(scores, codes, size):
    """Restore a heap (worst entry at the root) after its root was replaced."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        right = child + 1
        if right < size and _better(scores[child], codes[child], scores[right], codes[right]):
            child = right
        if not _better(scores[at], codes[at], scores[child], codes[child]):
            return
        scores[at], scores[child] = scores[child], scores[at]
        codes[at], codes[child] = codes[child], codes[at]
        at = child


@compiled
def _top_k(slots, k, normalize, scratch, codes, scores):
    """Write the k best slots (score, then smaller code), best first; returns how many.

    Scores are compared as the float32 that is written, so that sums equal up to rounding count as ties.
    """
    size = min(slots, k)
    if normalize:
        best = 0.0
        for slot in range(slots):
            best = max(best, scratch.score[slot])
        for slot in range(slots):
            scratch.score[slot] /= best
    for slot in range(slots):
        score, code = np.float32(scratch.score[slot]), scratch.code[slot]
        if slot < size:
            at = slot
            while at > 0:
                parent = (at - 1) // 2
                if not _better(scores[parent], codes[parent], score, code):
                    break
                scores[at], codes[at] = scores[parent], codes[parent]
                at = parent
            scores[at], codes[at] = score, code
        elif _better(score, code, scores[0], codes[0]):
            scores[0], codes[0] = score, code
            _sift_down(scores, codes, size)
    for end in range(size - 1, 0, -1):
        scores[0], scores[end] = scores[end], scores[0]
        codes[0], codes[end] = codes[end], codes[0]
        _sift_down(scores, codes, end)
    return size


@compiled
def score_range(begin, end, k, normalize, edges, inverse, scratch, counts, codes, scores):
    """Score the anchors begin..end-1 by SWING and keep the k best neighbours of each.

    With `normalize` the scores of an anchor are divided by its best.

    `edges` Edges; `inverse` f64: inverse[n] is 1 / (alpha + overlap) of a pair of users that shares n items
    besides the anchor; `scratch` Scratch. Filled: `counts` i32[end - begin], and one anchor after the other
    without gaps `codes` i32 and `scores` f32, best first, ties by code.
    Returns the pair updates: Σ over anchors i and items j of the pairs of users in U_i ∩ U_j.
    """
    updates, filled = 0, 0
    for anchor in range(begin, end):
        hits, slots = _walk(anchor, edges, scratch)
        counts[anchor - begin] = min(slots, k)
        if hits == 0:
            continue
        row = edges.anchor_ptr[anchor]
        for a in range(edges.anchor_ptr[anchor + 1] - row):
            scratch.weight[a] = edges.user_weight[edges.anchor_idx[row + a]]
        scratch.score[:slots] = 0.0
        updates += _score(hits, inverse, scratch)
        filled += _top_k(slots, k, normalize, scratch, codes[filled:], scores[filled:])
    return updates


@compiled
def overlap_range(begin, end, k, normalize, edges, measure, scratch, counts, codes, scores):
    """As `score_range`, for the similarities of an overlap: Σ user_weight over U_i ∩ U_j, as it is (PLAIN),
    COSINE or JACCARD of it; `scratch` OverlapScratch.

    Returns the additions: Σ over anchors i and items j of |U_i ∩ U_j|.
    """
    updates, filled = 0, 0
    for anchor in range(begin, end):
        slots, additions = _overlap(anchor, edges, measure, scratch)
        counts[anchor - begin] = min(slots, k)
        updates += additions
        filled += _top_k(slots, k, normalize, scratch, codes[filled:], scores[filled:])
    return updates
