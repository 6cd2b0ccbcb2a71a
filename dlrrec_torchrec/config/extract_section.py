"""Settings of extraction."""

from __future__ import annotations

import dataclasses

from dlrrec_torchrec.config.table_section import MOST_SEED, option

ENCODER_DIMS = {"sentence-transformers/all-MiniLM-L6-v2": 384}  # to plan before there is any vector


@dataclasses.dataclass
class ExtractConfig:
    """Training reviews -> summaries, vectors, price tags, categories."""

    provider: str = option(
        "offline",
        "who writes content: offline (no network), llm (a language model), or a class of yours, MODULE:CLASS",
    )
    provider_options: dict = option({}, "settings of a provider of yours")
    encoder: str = option(
        "sentence-transformers/all-MiniLM-L6-v2", "hub name, folder, or server:MODEL (llm's)"
    )
    encoder_precision: str = option("exact", "int8: faster, other vectors (extra int8)", ("exact", "int8"))
    batch_tokens: int = option(1024, "tokens in one encoder batch", least=1)
    engine: str = option(
        "local",
        "where texts are embedded and BLIP-2 describes pictures: on this machine, or on a Ray cluster",
        ("local", "ray"),
    )
    address: str = option(
        "",
        "for 'ray': the cluster's, HOST:PORT or auto (default: RAY_ADDRESS, else one is started here)",
    )
    summary_sentences: int = option(5, "sentences of an extractive summary", least=1)
    folds: int = option(5, "folds: what a training row sees is made without its fold's reviews", least=2)
    fold_by: str = option(
        "random",
        "random folds, or blocks of time (for prepare.statistics=ordered: rows see earlier blocks only)",
        ("random", "time"),
    )
    categories_from: str = option(
        "auto",
        "categories from review text or item metadata; auto: from metadata where no review has words",
        ("auto", "text", "items"),
    )
    price_from: str = option(
        "auto",
        "price tag from review text or item metadata; auto: from metadata where no review has words",
        ("auto", "text", "items"),
    )
    category_slots: int = option(11, "category types kept of an item, best first, at most", least=1)
    seed: int = option(0, "seed of the fold assignment", least=0, most=MOST_SEED)
