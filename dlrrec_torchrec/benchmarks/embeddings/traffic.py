"""The fewest and the most bytes that a step of embedding tables moves."""

from __future__ import annotations

from dlrrec_torchrec.benchmarks.cases import WEIGHT_BYTES, EmbeddingCase

INDEX_BYTES = 8


def state_bytes(optimizer: str, dim: int) -> int:
    """Bytes of optimizer state of one row: fp32, sgd none, rowwise_adagrad 1 number, adam 2 a column."""
    return {"sgd": 0, "rowwise_adagrad": 4, "adam": 8 * dim}[optimizer]


def traffic(case: EmbeddingCase, unique: float, output_bytes: int) -> dict[str, dict[str, float]]:
    """Bytes of the forward pass and of backward pass with update, in three counts.

    With T tables, B bags, L ids a bag (N = T·B·L lookups), D columns of w bytes, sums of o bytes, s bytes of
    optimizer state a row, ids and offsets of 8 bytes:

        forward   R·D·w + 8·N + 8·(T·B + 1) + T·B·D·o          rows, ids and offsets read; sums written
        backward  G·D·o + 8·N + 8·(T·B + 1) + 2·R·(D·w + s)    gradients, ids and offsets read;
                                                               rows and their state read and written

    Counts:
        unique: R = the distinct rows of the step, G = T·B. Every byte moves once, as if caches kept
            everything that is used again: the minimum, so a share of the bandwidth by it is never too high.
        lookups: R = G = N. Every lookup goes to memory. Where ids repeat, caches can push its share above 1.
        fbgemm: as FBGEMM's own benchmarks count, N·D·w + T·B·D·o forward and twice that backward; for
            comparison with published figures.

    What the kernels move for themselves (sorting ids, sparse gradients, sums exchanged by ranks) is not
    counted: the measurement shows its cost. Totals over all ranks.

    Args:
        unique: distinct rows of a step, over all tables (the mean where steps differ).
        output_bytes: o.

    Returns:
        {"forward" or "backward": {count: bytes}}.
    """
    bags, weight = case.tables * case.batch, WEIGHT_BYTES[case.dtype]
    ids = INDEX_BYTES * (case.lookups + bags + 1)
    sums = bags * case.dim * output_bytes
    row, state = case.dim * weight, state_bytes(case.optimizer, case.dim)
    convention = case.lookups * row + sums
    return {
        "forward": {
            "unique": unique * row + ids + sums,
            "lookups": case.lookups * row + ids + sums,
            "fbgemm": convention,
        },
        "backward": {
            "unique": sums + ids + 2 * unique * (row + state),
            "lookups": case.lookups * case.dim * output_bytes + ids + 2 * case.lookups * (row + state),
            "fbgemm": 2 * convention,
        },
    }


def memory_needed(case: EmbeddingCase) -> int:
    """The least bytes that the tables of one process need, with optimizer state, gradients and reference."""
    weights = case.tables * case.rows * case.dim * WEIGHT_BYTES[case.dtype]
    all_bytes = weights + case.tables * case.rows * state_bytes(case.optimizer, case.dim)
    shared = case.world_size if case.sharding not in ("none", "data_parallel") else 1
    fbgemm_bytes = all_bytes // shared + (weights if case.kernel == "dense" else 0)
    reference_bytes = (
        0 if case.reference == "none" else all_bytes + (weights if case.reference == "dense" else 0)
    )
    return fbgemm_bytes + reference_bytes
