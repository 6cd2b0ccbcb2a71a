"""`dlrrec bench encode`: sentences to vectors as `extract` makes them, against plain sentence-transformers.

The texts are the made-up world's sentences, some of them joined, so that lengths vary as in real reviews.
Before anything is timed, both sides must have made the same vectors. Then they take turns, first one first,
then the other. This project's time includes the start of its processes. Loading is timed apart, once.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.benchmarks.cases import EncodeCase
from dlrrec_torchrec.benchmarks.format import spread
from dlrrec_torchrec.benchmarks.timing import summary
from dlrrec_torchrec.extract.encoder import SentenceEncoder
from dlrrec_torchrec.extract.sentences import MAX_WORDS, split_sentences
from dlrrec_torchrec.ingest.synthetic.write import write_world
from dlrrec_torchrec.store.errors import DataError

LEAST_COSINE = {"exact": 0.9999, "int8": 0.9}
NEIGHBOURS, NEIGHBOURS_OF = 10, 1000  # compared: the nearest, of so many texts at most
ALONE = 0.7  # share of the texts that are one sentence; of the others as many are two, and so on


def run(case: EncodeCase, say: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure.

    Args:
        say: called with a line before each part.

    Returns:
        case: its settings. encoder: this project's, as the cache's keys name it.
        texts: `count`, and `words` of one (mean, p95, most).
        check: the least and the `mean_cosine` of a text's two vectors, the largest `difference` of two
            numbers, and the share of a text's ten nearest `neighbours` by the one that are so by the other.
        load: seconds until the first vector, `plain` and `dlrrec`: libraries (not torch) and weights.
        seconds: of all texts, `plain` and `dlrrec` (median, p10, p90 of the rounds).
        ratio: plain's time over this project's, of the same round (median, p10, p90).

    Raises DataError for an encoder that cannot be used, and where the sides differ.
    """
    texts = make_texts(case.sentences, case.seed)
    say("loading both sides")
    with tempfile.TemporaryDirectory() as converted:
        return _compare(case, texts, say, Path(converted))


def _compare(
    case: EncodeCase, texts: list[str], say: Callable[[str], Any], converted: Path
) -> dict[str, Any]:
    ours = SentenceEncoder(
        case.encoder,
        case.batch_tokens,
        workers=case.workers or None,
        precision=case.precision,
        converted=converted,
    )

    def dlrrec(texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), ours.dim), np.float32)
        for batch, made in ours.encode_batches(texts):
            vectors[batch] = made
        return vectors

    began = time.perf_counter()
    dlrrec(texts[:1])
    loaded = time.perf_counter()
    plain = _plain(ours)
    plain(texts[:1])
    load = {"plain": time.perf_counter() - loaded, "dlrrec": loaded - began}

    say(f"checking: {len(texts):,} texts on both sides")
    expected, made = plain(texts), dlrrec(texts)
    cosines = np.einsum("nv,nv->n", expected, made)
    check = {
        "cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "difference": float(np.abs(expected - made).max()),
        "neighbours": same_neighbours(expected[:NEIGHBOURS_OF], made[:NEIGHBOURS_OF]),
    }
    if not check["cosine"] >= (least := LEAST_COSINE[case.precision]):
        raise DataError(
            f"bench encode: the sides differ: the least cosine is {check['cosine']:.6f}, below {least}"
        )
    sides, seconds = {"plain": plain, "dlrrec": dlrrec}, {"plain": [], "dlrrec": []}
    for number in range(case.rounds):
        say(f"round {number + 1} of {case.rounds}")
        for name in list(sides)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            sides[name](texts)
            seconds[name].append(time.perf_counter() - start)
    words = [len(text.split()) for text in texts]
    return {
        "case": dataclasses.asdict(case),
        "encoder": ours.identity,
        "texts": {
            "count": len(texts),
            "words": {
                "mean": float(np.mean(words)),
                "p95": float(np.percentile(words, 95)),
                "most": max(words),
            },
        },
        "check": check,
        "load": load,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratio": summary(np.divide(seconds["plain"], seconds["dlrrec"])),
    }


def make_texts(count: int, seed: int) -> list[str]:
    """Distinct sentences of the `small` world, and such joined to texts of at most MAX_WORDS words.

    Raises DataError where the world has too few.
    """
    with tempfile.TemporaryDirectory() as folder:
        reviews, *_ = write_world("small", seed, folder)
    pieces = dict.fromkeys(s for text in reviews["text"].to_pylist() for s in split_sentences(text))
    rng = np.random.default_rng(seed)
    sentences = iter(rng.permutation(list(pieces)).tolist())
    texts = []
    for number in rng.geometric(ALONE, count):
        joined = [sentence for _, sentence in zip(range(number), sentences, strict=False)]
        if not joined:
            raise DataError(f"--sentences {count}: the world has {len(texts):,} of them")
        texts.append(" ".join(" ".join(joined).split()[:MAX_WORDS]))
    return texts


def same_neighbours(one: np.ndarray, other: np.ndarray, count: int = NEIGHBOURS) -> float:
    """The share of each text's `count` nearest by its vector in `one`, f32 [N, V], that are so in `other`."""
    nearest = []
    for vectors in (one, other):
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, len(vectors) - 1)])
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared) / max(1, nearest[0].shape[1])) if nearest[0].size else 1.0


def _plain(ours: SentenceEncoder) -> Callable[[list[str]], np.ndarray]:
    """`SentenceTransformer.encode` with its own defaults (32 texts a batch, all cores)."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = SentenceTransformer(str(ours.folder), device=ours.device, local_files_only=True)
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def format_check(check: dict[str, float]) -> str:
    return (
        f"cosine of a text's two vectors: least {check['cosine']:.6f}, mean {check['mean_cosine']:.6f}; "
        f"the same among the ten nearest texts: {check['neighbours']:.1%}"
    )


def format_encoding(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a table, the first its head."""
    lines = [["", "load s", "s (p10 to p90)", "sentences/s", "ratio (p10 to p90)"]]
    for name, label in (("plain", "sentence-transformers"), ("dlrrec", "dlrrec")):
        seconds = report["seconds"][name]
        rate = f"{report['texts']['count'] / seconds['median']:,.0f}"
        ratio = spread(report["ratio"], "{:.2f}") if name == "dlrrec" else "1"
        lines.append([label, f"{report['load'][name]:.1f}", spread(seconds, "{:.1f}"), rate, ratio])
    return lines
