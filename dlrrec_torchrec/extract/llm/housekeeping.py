"""What a run's cache holds, and giving some of it back: `dlrrec cache`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from dlrrec_torchrec.extract.llm.answer_forms import Unusable, is_of_the_form, read_answer
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.provenance import FOLDER
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import part_files
from dlrrec_torchrec.store.folders import write_named_file


def stats(cache_dir: Path, language: str) -> str:
    """A table of the answers by model and prompt, and the size of all that is cached.

    Unusable answers say nothing in the form that was asked for; mended ones do, after small errors, prose
    around the JSON or synonyms were put right.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    with AnswerStore(cache_dir) as store:
        for row in store.rows():
            group = groups.setdefault((row["model"], row["prompt"]), [0] * 5)
            bad = not usable(row, language)
            mended = not bad and not is_of_the_form(row["text"], tuple(row["fields"].split()))
            of_row = (1, bad, mended, row["input_tokens"], row["output_tokens"])
            group[:] = [a + b for a, b in zip(group, of_row, strict=True)]
    wide = max([23, *(len(model) for model, _ in groups)]) + 1  # a local model's name has its SHA-256
    lines = [
        f"{'model':<{wide}}{'prompt':<20}{'answers':>10}{'unusable':>10}{'mended':>10}{'tokens in':>14}"
        f"{'tokens out':>13}"
    ]
    lines += [
        f"{model:<{wide}}{prompt:<20}{n:>10,}{bad:>10,}{mended:>10,}{inputs:>14,}{outputs:>13,}"
        for (model, prompt), (n, bad, mended, inputs, outputs) in sorted(groups.items())
    ]
    answers = sum(path.stat().st_size for path in cache_dir.glob("answers.sqlite*"))
    vectors = [path.stat().st_size for path in (cache_dir / "vectors").glob("*.parquet")]
    size = f"answers {answers / 2**20:,.1f} MiB; vectors {sum(vectors) / 2**20:,.1f} MiB"
    return "\n".join([*lines, f"{size} in {len(vectors):,} files"])


def export(cache_dir: Path, file: Path) -> int:
    """Write every answer as a line of JSON; returns how many. Raises DataError where that cannot be done."""
    with AnswerStore(cache_dir) as store:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in store.rows()]
    write_named_file(file, "".join(lines))
    return len(lines)


def prune(
    cache_dir: Path, language: str, contents: Iterable[Path], *, failed: bool, unused: bool, model: str | None
) -> int:
    """Forget the answers that any of these choose; returns how many.

    Args:
        contents: content folders whose answers are in use.
        failed: refusals, rejections, cut and other unusable answers.
        unused: answers behind no content in `contents`.
        model: answers of this model.

    Raises DataError where nothing is chosen.
    """
    if not failed and not unused and model is None:
        raise DataError("dlrrec cache prune: choose by --failed, --unused or --model NAME what to forget")
    used: set[str] = set()
    for folder in contents:
        if (folder / FOLDER).exists():
            calls = pads.dataset(part_files(folder / FOLDER)).to_table(["calls"])["calls"]
            used.update(key for keys in calls.to_pylist() for key in keys)
    with AnswerStore(cache_dir) as store:
        keys = [
            row["key"]
            for row in store.rows()
            if (failed and not usable(row, language))
            or (unused and row["key"] not in used)
            or row["model"] == model
        ]
        if keys:
            store.delete(keys)
    return len(keys)


def usable(row: dict[str, Any], language: str) -> bool:
    """Whether a kept answer says something of the form that was asked for."""
    if row["error"] or row["refusal"] or row["finish"] in ("length", "content_filter"):
        return False
    try:
        read_answer(row["text"], tuple(row["fields"].split()), language)
    except Unusable:
        return False
    return True
