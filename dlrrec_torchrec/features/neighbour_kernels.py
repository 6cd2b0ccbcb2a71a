"""The inner loops of neighbourhood features, compiled: one pass over the rows of bounded lists.

The functions without an underscore are what others call; each of the compiled loops works on a range of rows.
"""

from __future__ import annotations

import numpy as np

from dlrrec_torchrec.features.machine_code import in_parallel, machine_code

CONFIDENCE = 5.0  # a correlation over n shared rows counts n / (n + this)


def similar_lists(
    rows: np.ndarray,
    row_entries: np.ndarray,
    row_values: np.ndarray,
    columns: np.ndarray,
    column_entries: np.ndarray,
    column_values: np.ndarray,
    degree: np.ndarray,
    most: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each column (say item) the `most` columns with the highest cosine of who has them.

    Args:
        rows: int64 [R + 1], offsets of each row's entries; row_entries: int32 columns; row_values: f32.
        columns: int64 [C + 1], the same matrix by column.
        degree: f32 [C], true number of entries of each column, of which the lists may hold a sample.

    Returns:
        number int32 [C], who int32 [C, most] ascending, cosine f32 and correlation f32 of the values over the
        n rows that have both, times n / (n + CONFIDENCE).
    """
    size = len(columns) - 1
    number = np.zeros(size, np.int32)
    who = np.zeros((size, most), np.int32)
    cosine, correlation = np.zeros((size, most), np.float32), np.zeros((size, most), np.float32)
    matrix = rows, row_entries, row_values, columns, column_entries, column_values
    in_parallel(_similar, size, *matrix, degree, number, who, cosine, correlation)
    return number, who, cosine, correlation


@machine_code
def _similar(
    start,
    stop,
    rows,
    row_entries,
    row_values,
    columns,
    column_entries,
    column_values,
    degree,
    number,
    who,
    cosine,
    correlation,
):
    size, most = len(columns) - 1, who.shape[1]
    count = np.zeros(size, np.int32)
    product = np.zeros(size, np.float32)
    own = np.zeros(size, np.float32)
    other = np.zeros(size, np.float32)
    touched = np.zeros(size, np.int32)
    kept = np.zeros(most, np.int32)  # a heap, the weakest on top
    for target in range(start, stop):
        seen = 0
        for at in range(columns[target], columns[target + 1]):
            row, value = column_entries[at], column_values[at]
            for k in range(rows[row], rows[row + 1]):
                column = row_entries[k]
                if column == target:
                    continue
                if count[column] == 0:
                    touched[seen] = column
                    seen += 1
                count[column] += 1
                product[column] += value * row_values[k]
                own[column] += value * value
                other[column] += row_values[k] * row_values[k]
        size_kept = 0
        for k in range(seen):
            column = touched[k]
            if size_kept < most:
                place = size_kept
                size_kept += 1
                kept[place] = column
                while place > 0 and _weaker(kept[place], kept[(place - 1) // 2], count, degree):
                    parent = (place - 1) // 2
                    kept[place], kept[parent] = kept[parent], kept[place]
                    place = parent
            elif _weaker(kept[0], column, count, degree):
                kept[0] = column
                place = 0
                while True:
                    child = 2 * place + 1
                    if child >= most:
                        break
                    if child + 1 < most and _weaker(kept[child + 1], kept[child], count, degree):
                        child += 1
                    if not _weaker(kept[child], kept[place], count, degree):
                        break
                    kept[place], kept[child] = kept[child], kept[place]
                    place = child
        for k in range(1, size_kept):  # ascending by code: few, and nearly in order or not, it is short
            column, place = kept[k], k
            while place > 0 and kept[place - 1] > column:
                kept[place] = kept[place - 1]
                place -= 1
            kept[place] = column
        number[target] = size_kept
        for k in range(size_kept):
            column = kept[k]
            shared = count[column]
            who[target, k] = column
            cosine[target, k] = shared / np.sqrt(degree[column] * degree[target])
            scale = np.sqrt(own[column] * other[column])
            if scale > 0:
                correlation[target, k] = product[column] / scale * (shared / (shared + CONFIDENCE))
        for k in range(seen):
            column = touched[k]
            count[column] = 0
            product[column] = own[column] = other[column] = 0.0


@machine_code
def _weaker(a, b, count, degree):
    """Whether column `a` is less similar than `b`; of equal ones that with the higher code."""
    left = count[a] * np.sqrt(degree[b])
    right = count[b] * np.sqrt(degree[a])
    return left < right or (left == right and a > b)


def by_vectors(
    walked: np.ndarray,
    target: np.ndarray,
    offsets: np.ndarray,
    entries: np.ndarray,
    values: np.ndarray,
    vectors: np.ndarray,
    power: int,
    shrinkage: float,
) -> np.ndarray:
    """The values in a list, weighted by how similar each entry is to the target: f32 [N, 3].

    For pair n the list of `walked[n]` holds entries j with values v_j; w_j = max(0, x_j . x_t)^power for the
    vectors x of j and of t = `target[n]`. Columns: sum w v / (sum w + shrinkage), mean w, largest w. The
    target itself, if it is in the list, does not count.
    """
    out = np.zeros((len(walked), 3), np.float32)
    in_parallel(
        _by_vectors, len(walked), walked, target, offsets, entries, values, vectors, power, shrinkage, out
    )
    return out


@machine_code
def _by_vectors(start, stop, walked, target, offsets, entries, values, vectors, power, shrinkage, out):
    width = vectors.shape[1]
    for n in range(start, stop):
        t = target[n]
        total, weighted, largest, counted = 0.0, 0.0, 0.0, 0
        for k in range(offsets[walked[n]], offsets[walked[n] + 1]):
            j = entries[k]
            if j == t:
                continue
            counted += 1
            dot = np.float32(0.0)
            for d in range(width):
                dot += vectors[j, d] * vectors[t, d]
            if dot <= 0:
                continue
            weight = dot
            for _ in range(power - 1):
                weight *= dot
            total += weight
            weighted += weight * values[k]
            largest = max(largest, weight)
        if counted:
            out[n, 0] = weighted / (total + shrinkage)
            out[n, 1] = total / counted
            out[n, 2] = largest


def by_graph(
    walked: np.ndarray,
    target: np.ndarray,
    offsets: np.ndarray,
    entries: np.ndarray,
    values: np.ndarray,
    number: np.ndarray,
    who: np.ndarray,
    cosine: np.ndarray,
    correlation: np.ndarray,
    shrinkage: float,
) -> np.ndarray:
    """As `by_vectors`, with the similarities of `similar_lists` of the target: f32 [N, 6].

    Columns: by cosine, the weighted value, mean and largest weight; by correlation, sum r v / (sum |r| +
    shrinkage), sum r v, and the number of entries that are among the target's similar ones.
    """
    out = np.zeros((len(walked), 6), np.float32)
    lists = walked, target, offsets, entries, values
    in_parallel(_by_graph, len(walked), *lists, number, who, cosine, correlation, shrinkage, out)
    return out


@machine_code
def _by_graph(
    start,
    stop,
    walked,
    target,
    offsets,
    entries,
    values,
    number,
    who,
    cosine,
    correlation,
    shrinkage,
    out,
):
    for n in range(start, stop):
        t = target[n]
        first, last = offsets[walked[n]], offsets[walked[n] + 1]
        total, weighted, largest, signed, absolute, shared = 0.0, 0.0, 0.0, 0.0, 0.0, 0
        k, size = 0, number[t]
        for at in range(first, last):  # both lists ascend
            while k < size and who[t, k] < entries[at]:
                k += 1
            if k == size:
                break
            if who[t, k] == entries[at]:
                weight, r = cosine[t, k], correlation[t, k]
                total += weight
                weighted += weight * values[at]
                largest = max(largest, weight)
                signed += r * values[at]
                absolute += abs(r)
                shared += 1
        if last > first:
            out[n, 0] = weighted / (total + shrinkage)
            out[n, 1] = total / (last - first)
            out[n, 2] = largest
            out[n, 3] = signed / (absolute + shrinkage)
            out[n, 4] = signed
            out[n, 5] = shared


def pair_dots(left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """left[a_n] . right[b_n] of f32 [A, D] and [B, D]: f32 [N]."""
    out = np.empty(len(a), np.float32)
    in_parallel(_pair_dots, len(a), left, right, a, b, out)
    return out


@machine_code
def _pair_dots(start, stop, left, right, a, b, out):
    for n in range(start, stop):
        dot = np.float32(0.0)
        for d in range(left.shape[1]):
            dot += left[a[n], d] * right[b[n], d]
        out[n] = dot
