"""Where content came from: the rows of its table, and what the stage's manifest says."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.extract.llm.local_model import is_local
from dlrrec_torchrec.extract.llm.prompt_sets import PAPERS_MODEL
from dlrrec_torchrec.extract.llm.provenance import DROPPED, FOLDER, NO_WORDS, PROVENANCE
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.store.files import write_table

if TYPE_CHECKING:
    from dlrrec_torchrec.extract.llm.running import Told
    from dlrrec_torchrec.extract.providers.language_model import LanguageModelProvider


@functools.cache
def library(local: bool) -> str:
    """The packages that ask, and those that answer where a local model does, with their versions."""
    names = ["openai", *(["llama_cpp_python"] if local and importlib.util.find_spec("llama_cpp") else [])]
    return ", ".join(f"{name} {version(name)}" for name in names)


def rows_of(provider: LanguageModelProvider, entity: EntityReviews, told: Told) -> list[dict[str, Any]]:
    """The rows of the table about one version."""
    base = {
        "side": entity.side,
        "id": entity.id,
        "fold": entity.fold,
        "provider": provider.name,
        "model": provider.model,
        "library": library(is_local(provider.settings)),
    }
    history = told.history
    if history is None:
        return [base | {"prompt": "", "reviews": 0, "parts": 0, "calls": [], "reason": NO_WORDS}]
    base |= {
        "input_hash": history.input_hash,
        "reviews": len(history.texts),
        "parts": len(history.read.parts),
        "left_out": history.read.left_out,
        "cut_tokens": history.read.cut_tokens,
    }
    return [
        base
        | {
            "prompt": answer.prompt.name,
            "prompt_hash": provider.questions.prompt_hash(answer.prompt),
            "calls": list(answer.keys),
            "reason": answer.reason or None,
        }
        for answer in told.answers
    ]


def write_provenance(rows: list[dict[str, Any]], dropped: Counter[str], folder: Path) -> None:
    """Write the table into `folder`/provenance, and beside it the names of categories that were dropped."""
    write_table(pa.Table.from_pylist(rows, PROVENANCE), folder / FOLDER)
    names = dropped.most_common()
    table = pa.table({"name": [n for n, _ in names], "items": pa.array([c for _, c in names], pa.int32())})
    pq.write_table(table, folder / DROPPED)


def facts_of(provider: LanguageModelProvider) -> dict[str, Any]:
    """What the manifest says of the calls and their answers."""
    budget, settings, rows = provider.budget, provider.settings, provider.rows
    versions = {(row["side"], row["id"], row["fold"]): row for row in rows}.values()
    return {
        "base_url": settings.base_url,
        "local_options": settings.local_options,
        "prompts": settings.prompts,
        "papers_used": PAPERS_MODEL,
        "tokens_counted_by": provider.questions.counter.name,
        "library": library(is_local(settings)),
        **budget.facts,
        "calls_known": max(0, provider.used - budget.calls),
        "versions": provider.versions,
        "without_answer": provider.failed,
        "reasons": dict(Counter(row["reason"] for row in rows if row["reason"]).most_common(100)),
        "in_parts": sum((row["parts"] or 0) > 1 for row in versions),
        "reviews_left_out": sum(row.get("left_out") or 0 for row in versions),
        "tokens_cut": sum(row.get("cut_tokens") or 0 for row in versions),
        "category_types": len(provider.vocabulary or ()),
        "categories_dropped": len(provider.dropped),
    }
