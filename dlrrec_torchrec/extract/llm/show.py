"""All that went into an entity's content, and what came out: `dlrrec extract show`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as pads

from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract.llm.provenance import FOLDER, PROVENANCE
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.extract.training_reviews import entities_of, read_training_reviews
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import part_files, read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths


def show(
    config: ExtractConfig, llm: LlmConfig, paths: RunPaths, side: str, entity_id: str, fold: int = -1
) -> str:
    """The reviews that went in, prompts, answers, the content and its vector's norm, of one version.

    Raises DataError where the content is not there, or has no such user, item or version.
    """
    manifest = Manifest.read(paths.content)
    row = _content(paths.content, manifest, side, entity_id, fold)
    items = paths.items if (paths.items / "manifest.json").exists() else None
    given = read_training_reviews(config, paths.split / "train", items)
    entity = next((e for e in entities_of(given) if (e.side, e.id, e.fold) == (side, entity_id, fold)), None)
    if entity is None:
        raise DataError(f"{paths.split}: has no {side} '{entity_id}' with a version of fold {fold}")
    facts = manifest.facts
    lines = [
        f"{side} {entity_id}, {'all training reviews' if fold == -1 else f'without those of fold {fold}'}",
        f"provider: {facts['provider']}, model: {facts['model']}",
    ]
    if (paths.content / FOLDER).exists():
        lines += _asked(paths, llm, config.summary_sentences, entity)
    else:
        lines += ["", "reviews:", *_numbered(entity.texts)]
    norm = row.pop("text_vector")
    lines += ["", "content:"]
    lines += [f"  {name}: {value if value not in (None, []) else 'none'}" for name, value in row.items()]
    lines.append(f"  norm of the summary's vector: {'no vector' if norm is None else f'{norm:.4f}'}")
    return "\n".join(lines)


def _content(folder: Path, manifest: Manifest, side: str, entity_id: str, fold: int) -> dict[str, Any]:
    """The row of the content table; the vector as its norm."""
    table, kind = folder / f"{side}s", schema.USER_CONTENT if side == "user" else schema.ITEM_CONTENT
    columns = [*kind.names, "text_vector"]
    chosen = (pc.field("id") == entity_id) & (pc.field("fold") == fold)
    found = pads.dataset(part_files(table)).to_table(columns, filter=chosen).to_pylist()
    if not found:
        apart = ""
        if side == "item" and (folder / "cold").exists():
            ids = pads.dataset(part_files(folder / "cold")).to_table(["id"])["id"]
            if pc.is_in(entity_id, value_set=ids).as_py():
                apart = "; it is set apart by split.cold_items, and shown are items of training rows"
        raise DataError(f"{table}: has no {side} '{entity_id}' with a version of fold {fold}{apart}")
    row = found[0]
    if row["text_vector"] is not None:
        row["text_vector"] = float(np.linalg.norm(np.asarray(row["text_vector"], np.float32)))
    return row


def _asked(paths: RunPaths, llm: LlmConfig, sentences: int, entity: EntityReviews) -> list[str]:
    from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
    from dlrrec_torchrec.extract.llm.questions import Questions

    questions = Questions(llm, sentences, entity.corpus.texts)
    history = questions.history(entity)
    if history is None:
        return ["", "no review has words"]
    read = [i for part in history.read.parts for i in part]
    lines = [f"input hash: {history.input_hash}", "", "reviews, oldest first, as they were sent:"]
    lines += _numbered([history.texts[i] for i in read])
    if history.description:
        lines += ["own words, as they were sent:", *_numbered([history.description])]
    if history.read.left_out or history.read.cut_tokens:
        lines.append(f"not read: {history.read.left_out} reviews, {history.read.cut_tokens} tokens in all")
    rows = read_table(paths.content / FOLDER, PROVENANCE).to_pylist()
    key = (entity.side, entity.id, entity.fold)
    with AnswerStore(paths.cache) as store:
        for row in (row for row in rows if (row["side"], row["id"], row["fold"]) == key):
            if row["input_hash"] != history.input_hash:
                lines.append(
                    "The settings or the reviews are no longer those that the content was made with."
                )
            prompt = next((p for p in questions.prompts if p.name == row["prompt"]), None)
            lines += ["", f"prompt {row['prompt']}, hash {row['prompt_hash']}, by {row['library']}:"]
            if prompt is not None:
                lines.append(textwrap.indent(questions.instruction(prompt), "  "))
            for call in row["calls"]:
                lines += _reply(call, store)
            lines += [f"  no answer: {row['reason']}"] if row["reason"] else []
    return lines


def _reply(key: str, store: Any) -> list[str]:
    reply = store.get(key)
    if reply is None:
        return [f"answer {key}: no longer in the cache"]
    told = reply.text or (reply.refusal and f"refused: {reply.refusal}") or reply.error
    used = f"{reply.input_tokens:,} tokens in, {reply.output_tokens:,} out"
    return [f"answer {key} ({reply.finish}; {used}):", textwrap.indent(told, "  ")]


def _numbered(texts: list[str]) -> list[str]:
    return [textwrap.indent(text, "     ").replace("     ", f"{n:>4} ", 1) for n, text in enumerate(texts, 1)]
