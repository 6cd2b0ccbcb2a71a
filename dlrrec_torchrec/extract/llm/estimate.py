"""What a run would cost, before anything is spent: calls, tokens and money of three ways to keep a row's own
review out of its features.

per entity: one version of each user and item, of all their training reviews (a row then knows its review).
cross-fitted: that, and a version without each fold of the training rows, as the stage does. Of an entity
whose reviews are all in different folds, that is one without each of them.
exact: that, and a version without each single review (leave-one-out).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract.crossfit import versions
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.questions import Questions
from dlrrec_torchrec.extract.llm.spending import BATCH_SHARE, Prices, is_openai, known_prices
from dlrrec_torchrec.extract.new_items import read_cold_items
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.extract.training_reviews import (
    TrainingReviews,
    bare_corpus,
    entities_of,
    item_metadata,
    read_training_reviews,
)

MODES = ("per entity", "cross-fitted", "exact")
SENTENCE_TOKENS, NAMES_TOKENS, SMALL_TOKENS = (
    25,
    30,
    10,
)  # of an answer: a sentence, a list of names, the rest


@dataclasses.dataclass
class Amount:
    """Calls and their tokens. `known` calls have their answers already; their tokens are not counted."""

    versions: int = 0
    calls: int = 0
    known: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, other: Amount) -> None:
        self.versions += other.versions
        self.calls += other.calls
        self.known += other.known
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The amounts of each of MODES, and what shaped them."""

    users: int
    items: int
    reviews: int
    cold_items: int
    amounts: dict[str, Amount]
    prices: Prices | None
    settings: LlmConfig
    counted_by: str

    def to_text(self) -> str:
        """The table that `dlrrec extract --estimate` prints."""
        settings, prices = self.settings, self.prices
        cold = f", and {self.cold_items:,} items set apart" if self.cold_items else ""
        lines = [
            f"{self.reviews:,} training reviews of {self.users:,} users and {self.items:,} items{cold}; "
            f"prompts: {settings.prompts}; tokens: {self.counted_by}",
            f"model {settings.model}: "
            + (
                f"{prices.input:g} and {prices.output:g} US dollars for a million tokens of input and output "
                f"({prices.source})"
                if prices
                else "nobody told its price; give it by --input-price and --output-price"
            ),
            "",
            f"{'':<14}{'versions':>10}{'calls':>10}{'known':>10}{'tokens in':>14}{'tokens out':>13}"
            f"{'US dollars':>12}",
        ]
        for mode, amount in self.amounts.items():
            cost = prices and prices.cost(amount.input_tokens, amount.output_tokens)
            lines.append(
                f"{mode:<14}{amount.versions:>10,}{amount.calls:>10,}{amount.known:>10,}"
                f"{amount.input_tokens:>14,}{amount.output_tokens:>13,}"
                f"{'?' if cost is None else f'{cost:,.2f}':>12}"
            )
        lines += [
            "",
            "`dlrrec extract` works cross-fitted; tokens are of the calls whose answer is not known.",
        ]
        if is_openai(settings) and prices and not settings.batch:
            lines.append(f"With --batch it costs {BATCH_SHARE:.0%} of that.")
        return "\n".join(lines)


def estimate(
    config: ExtractConfig,
    llm: LlmConfig,
    split_dir: str | os.PathLike,
    items_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike,
) -> Estimate:
    """Count what `extract` with these settings would ask; nothing is sent.

    The length of answers is assumed: SENTENCE_TOKENS a sentence, NAMES_TOKENS a list of names. Calls that
    join the parts of long histories are counted, attempts after unusable answers are not. Items set apart
    (split.cold_items) are described in the same way by all of MODES.
    """
    split_dir, items_dir = Path(split_dir), Path(items_dir) if items_dir else None
    given = read_training_reviews(config, split_dir / "train", items_dir)
    cold = read_cold_items(split_dir, partial(item_metadata, items_dir))
    questions = Questions(llm, config.summary_sentences, given.texts)
    llm, of_cold = questions.settings, questions.about(cold.texts)
    amounts = {mode: Amount() for mode in MODES}
    with AnswerStore(cache_dir) as store:
        kept = store if store.path.exists() else None
        for entity in entities_of(given):
            counted = _amount(entity, questions, kept)
            for mode in MODES if entity.fold == -1 else ("cross-fitted",):
                amounts[mode].add(counted)
        alike = set()  # of an item with few reviews, versions are the same
        for entity in cold.entities(bare_corpus(cold.texts)):
            if (version := (entity.id, *entity.documents.tolist())) not in alike:
                alike.add(version)
                counted = _amount(entity, of_cold, kept)
                for mode in MODES:
                    amounts[mode].add(counted)
        for entity in _exact(given):
            amounts["exact"].add(_amount(entity, questions, None))
    return Estimate(
        len(given.ids["user"]),
        len(given.ids["item"]),
        len(given),
        len(cold.ids),
        amounts,
        known_prices(llm),
        llm,
        questions.counter.name,
    )


def _exact(given: TrainingReviews) -> Iterator[EntityReviews]:
    """Each entity without each of its reviews."""
    corpus, times = bare_corpus(given.texts), given.times
    for side in ("user", "item"):
        code = given.codes[side]
        place = np.empty(len(code), np.int64)  # of each review among its entity's: a fold of its own
        order = np.argsort(code, kind="stable")
        place[order] = np.arange(len(code)) - np.searchsorted(code[order], code[order])
        for entity, fold, rows in versions(code, place, len(given.ids[side])):
            if fold >= 0:
                documents = given.documents(side, entity, rows)
                known = None if times is None else times[documents]
                yield EntityReviews(given.ids[side][entity].as_py(), side, fold, documents, corpus, known)


def _amount(entity: EntityReviews, questions: Questions, store: AnswerStore | None) -> Amount:
    history, amount = questions.history(entity), Amount()
    if history is None:
        return amount
    amount.versions, parts = 1, len(history.read.parts)
    for prompt in questions.of(entity.side):
        answer = _answer_tokens(prompt.fields, questions.sentences)
        joins = parts > 1 and "summary" in prompt.fields
        amount.calls += parts + joins
        if store is not None:
            known = sum(store.get(call.key) is not None for call in questions.calls(prompt, history))
            if known == parts:
                amount.known += known + joins  # joined once all parts were there
                continue
        amount.input_tokens += history.tokens + parts * questions.fixed_tokens(prompt)
        amount.output_tokens += parts * answer
        if joins:
            summary = _answer_tokens(("summary",), questions.sentences)
            amount.input_tokens += questions.fixed_tokens(prompt) + parts * summary
            amount.output_tokens += summary
    return amount


@cache
def _answer_tokens(fields: tuple[str, ...], sentences: int) -> int:
    of_field = {"summary": SENTENCE_TOKENS * sentences, "price_tag": 0}
    return SMALL_TOKENS + sum(of_field.get(field, NAMES_TOKENS) for field in fields)
