"""The arithmetic of BERT, compiled: loops over vectors of sixteen numbers.

All sums are written out in their order, so the bits follow from this file alone, on any machine.
"""

from __future__ import annotations

import numpy as np

from dlrrec_torchrec.extract.lanes import (
    LOWEST,
    add,
    fused,
    larger,
    largest_of,
    load,
    move,
    nearest,
    only_first,
    over,
    power_of_two,
    repeat,
    smaller,
    spread,
    store,
    subtract,
    times,
    total_of,
)
from dlrrec_torchrec.features.machine_code import machine_code

_number = np.float32
_LOWEST = np.float32(LOWEST)
_BLOCK_ROWS, _BLOCK_DEPTH = 192, 384  # of 4 bytes: 288 KiB, in the second cache
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
# e^x = 2^n e^r with |r| <= ln 2 / 2, ln 2 in two parts (Cephes, expf)
_LEAST_EXPONENT, _LOG2_E = np.float32(-87), np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
_E5, _E4, _E3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E2, _E1, _E0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
# erf(x) = x p(x²) / q(x²) for |x| <= 4, beyond which it is 1 in single precision (Eigen, XLA)
_ROOT_HALF, _FOUR, _MINUS_FOUR = np.float32(0.7071067811865476), np.float32(4), np.float32(-4)
_P6, _P5, _P4 = np.float32([-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06])
_P3, _P2 = np.float32([-5.69250639462346e-05, -7.34990630326855e-04])
_P1, _P0 = np.float32([-2.95459980854025e-03, -1.60960333262415e-02])
_Q4, _Q3, _Q2 = np.float32([-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03])
_Q1, _Q0 = np.float32([-7.37332916720468e-03, -1.42647390514189e-02])


@machine_code
def _exp(x):
    """e^x of numbers up to 0, those below -87 taken as -87."""
    x = larger(x, repeat(_LEAST_EXPONENT))
    whole = nearest(times(x, repeat(_LOG2_E)))
    r = fused(whole, repeat(_LN2_LOW), fused(whole, repeat(_LN2_HIGH), x))
    p = fused(repeat(_E5), r, repeat(_E4))
    p = fused(fused(fused(p, r, repeat(_E3)), r, repeat(_E2)), r, repeat(_E1))
    p = fused(times(fused(p, r, repeat(_E0)), r), r, add(r, repeat(_ONE)))
    return times(p, power_of_two(whole))


@machine_code
def _erf(x):
    x = smaller(larger(x, repeat(_MINUS_FOUR)), repeat(_FOUR))
    s = times(x, x)
    p = fused(fused(repeat(_P6), s, repeat(_P5)), s, repeat(_P4))
    p = fused(fused(fused(fused(p, s, repeat(_P3)), s, repeat(_P2)), s, repeat(_P1)), s, repeat(_P0))
    q = fused(fused(repeat(_Q4), s, repeat(_Q3)), s, repeat(_Q2))
    q = fused(fused(q, s, repeat(_Q1)), s, repeat(_Q0))
    return over(times(x, p), q)


@machine_code
def _gelu(x):
    half = times(repeat(_HALF), x)
    return fused(half, _erf(times(x, repeat(_ROOT_HALF))), half)


@machine_code
def product(x, weights, bias, gelu, y):
    """y f32 [T, N] = x f32 [T, K] times a matrix, plus bias f32 [N], then GELU (with erf) if asked for.

    Six rows and sixteen columns at a time stay in registers, the columns' weights in the first cache, and the
    rows of a block in the second (Goto and van de Geijn 2008). A number is the sum of its K products in their
    order, in parts of 384: it depends neither on T nor on its place.

    Args:
        weights: f32 [N / 16, K, 16], the matrix [K, N] in panels of 16 columns.
        x, y: T is a multiple of 6, N of 16.
    """
    rows, depth = x.shape
    columns = y.shape[1]
    for block in range(0, rows, _BLOCK_ROWS):
        block_end = min(block + _BLOCK_ROWS, rows)
        for begin in range(0, depth, _BLOCK_DEPTH):
            end = min(begin + _BLOCK_DEPTH, depth)
            for column in range(0, columns, 16):
                panel = column * depth
                for row in range(block, block_end, 6):
                    to = row * columns + column
                    if begin:
                        s0, s1 = load(y, to), load(y, to + columns)
                        s2, s3 = load(y, to + 2 * columns), load(y, to + 3 * columns)
                        s4, s5 = load(y, to + 4 * columns), load(y, to + 5 * columns)
                    else:
                        s0 = s1 = s2 = s3 = s4 = s5 = load(bias, column)
                    at = row * depth
                    for k in range(begin, end):
                        w = load(weights, panel + k * 16)
                        s0 = fused(spread(x, at + k), w, s0)
                        s1 = fused(spread(x, at + depth + k), w, s1)
                        s2 = fused(spread(x, at + 2 * depth + k), w, s2)
                        s3 = fused(spread(x, at + 3 * depth + k), w, s3)
                        s4 = fused(spread(x, at + 4 * depth + k), w, s4)
                        s5 = fused(spread(x, at + 5 * depth + k), w, s5)
                    if gelu and end == depth:
                        s0, s1, s2, s3, s4, s5 = (
                            _gelu(s0),
                            _gelu(s1),
                            _gelu(s2),
                            _gelu(s3),
                            _gelu(s4),
                            _gelu(s5),
                        )
                    store(y, to, s0)
                    store(y, to + columns, s1)
                    store(y, to + 2 * columns, s2)
                    store(y, to + 3 * columns, s3)
                    store(y, to + 4 * columns, s4)
                    store(y, to + 5 * columns, s5)


@machine_code
def _norm_of_sum(a, a_at, b, b_at, width, scale, shift, epsilon, x, at):
    """x[at:] = LayerNorm of the rows from a[a_at] and b[b_at] on. Ba et al. 2016."""
    total = repeat(_ZERO)
    for i in range(0, width, 16):
        v = add(load(a, a_at + i), load(b, b_at + i))
        store(x, at + i, v)
        total = add(total, v)
    mean = repeat(total_of(total) / _number(width))
    squares = repeat(_ZERO)
    for i in range(0, width, 16):
        d = subtract(load(x, at + i), mean)
        squares = fused(d, d, squares)
    inverse = repeat(_ONE / np.sqrt(total_of(squares) / _number(width) + epsilon))
    for i in range(0, width, 16):
        d = times(subtract(load(x, at + i), mean), inverse)
        store(x, at + i, fused(d, load(scale, i), load(shift, i)))


@machine_code
def add_norm(x, y, scale, shift, epsilon):
    """In place: x f32 [T, W] -> LayerNorm(x + y), W a multiple of 16."""
    rows, width = x.shape
    for at in range(0, rows * width, width):
        _norm_of_sum(x, at, y, at, width, scale, shift, epsilon, x, at)


@machine_code
def embed(ids, places, word_vectors, place_vectors, scale, shift, epsilon, x):
    """x f32 [T or more, W] = LayerNorm(word_vectors[ids] + place_vectors[places]); rows beyond T become 0.

    Args:
        ids, places: i32 [T], in range.
    """
    rows, width = x.shape
    for t in range(rows):
        at = t * width
        if t < ids.shape[0]:
            word, place = ids[t] * width, places[t] * width
            _norm_of_sum(word_vectors, word, place_vectors, place, width, scale, shift, epsilon, x, at)
        else:
            for i in range(0, width, 16):
                store(x, at + i, repeat(_ZERO))


@machine_code
def attention(qkv, starts, size, keys, scores, seen):
    """Softmax attention of each text on itself. Vaswani et al. 2017, equation 1, without its scaling.

    Args:
        qkv: f32 [T, 3 W], scaled queries, keys, values; W = heads · size.
        starts: i64 [n + 1], the first token of each text, and the end.
        size: numbers of a head, a multiple of 16.
        keys, scores: scratch, f32 [size · P] and [4 · P] with P the longest text's tokens, rounded up to a
            multiple of 16.
        seen: output, f32 [T, W].
    """
    width = seen.shape[1]
    row = 3 * width
    for text in range(starts.shape[0] - 1):
        begin = starts[text]
        length = starts[text + 1] - begin
        wide = (length + 15) // 16 * 16
        for head in range(0, width, size):
            for j in range(length):
                at = (begin + j) * row + width + head
                for d in range(size):
                    move(keys, d * wide + j, qkv, at + d)
            for i in range(0, length, 4):
                # The last row again where four are too many.
                q0 = (begin + i) * row + head
                q1 = (begin + min(i + 1, length - 1)) * row + head
                q2 = (begin + min(i + 2, length - 1)) * row + head
                q3 = (begin + min(i + 3, length - 1)) * row + head
                most0 = most1 = most2 = most3 = repeat(_LOWEST)
                for j in range(0, wide, 16):
                    s0 = s1 = s2 = s3 = repeat(_ZERO)
                    for d in range(size):
                        key = load(keys, d * wide + j)
                        s0 = fused(spread(qkv, q0 + d), key, s0)
                        s1 = fused(spread(qkv, q1 + d), key, s1)
                        s2 = fused(spread(qkv, q2 + d), key, s2)
                        s3 = fused(spread(qkv, q3 + d), key, s3)
                    if j + 16 > length:
                        rest = length - j
                        s0, s1, s2, s3 = (
                            only_first(s0, rest),
                            only_first(s1, rest),
                            only_first(s2, rest),
                            only_first(s3, rest),
                        )
                    most0, most1 = larger(most0, s0), larger(most1, s1)
                    most2, most3 = larger(most2, s2), larger(most3, s3)
                    store(scores, j, s0)
                    store(scores, wide + j, s1)
                    store(scores, 2 * wide + j, s2)
                    store(scores, 3 * wide + j, s3)
                most0, most1 = repeat(largest_of(most0)), repeat(largest_of(most1))
                most2, most3 = repeat(largest_of(most2)), repeat(largest_of(most3))
                z0 = z1 = z2 = z3 = repeat(_ZERO)
                for j in range(0, wide, 16):
                    e0 = _exp(subtract(load(scores, j), most0))
                    e1 = _exp(subtract(load(scores, wide + j), most1))
                    e2 = _exp(subtract(load(scores, 2 * wide + j), most2))
                    e3 = _exp(subtract(load(scores, 3 * wide + j), most3))
                    z0, z1, z2, z3 = add(z0, e0), add(z1, e1), add(z2, e2), add(z3, e3)
                    store(scores, j, e0)
                    store(scores, wide + j, e1)
                    store(scores, 2 * wide + j, e2)
                    store(scores, 3 * wide + j, e3)
                z0, z1, z2, z3 = (
                    repeat(total_of(z0)),
                    repeat(total_of(z1)),
                    repeat(total_of(z2)),
                    repeat(total_of(z3)),
                )
                for d in range(0, size, 16):
                    s0 = s1 = s2 = s3 = repeat(_ZERO)
                    at = begin * row + 2 * width + head + d
                    for j in range(length):
                        value = load(qkv, at + j * row)
                        s0 = fused(spread(scores, j), value, s0)
                        s1 = fused(spread(scores, wide + j), value, s1)
                        s2 = fused(spread(scores, 2 * wide + j), value, s2)
                        s3 = fused(spread(scores, 3 * wide + j), value, s3)
                    to = (begin + i) * width + head + d
                    store(seen, to, over(s0, z0))
                    if i + 1 < length:
                        store(seen, to + width, over(s1, z1))
                    if i + 2 < length:
                        store(seen, to + 2 * width, over(s2, z2))
                    if i + 3 < length:
                        store(seen, to + 3 * width, over(s3, z3))


@machine_code
def pool(x, starts, vectors):
    """vectors f32 [n, W] = the mean of each text's rows of x f32 [T, W], at length 1 (0 stays 0).

    Args:
        starts: i64 [n + 1], the first row of each text, and the end.
    """
    width = x.shape[1]
    for text in range(starts.shape[0] - 1):
        at = text * width
        squares = repeat(_ZERO)
        count = repeat(_number(starts[text + 1] - starts[text]))
        for i in range(0, width, 16):
            total = repeat(_ZERO)
            for t in range(starts[text], starts[text + 1]):
                total = add(total, load(x, t * width + i))
            mean = over(total, count)
            store(vectors, at + i, mean)
            squares = fused(mean, mean, squares)
        length = repeat(max(np.sqrt(total_of(squares)), _number(1e-12)))
        for i in range(0, width, 16):
            store(vectors, at + i, over(load(vectors, at + i), length))
