"""The provider `llm`: content by a language model behind any server of the OpenAI form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.extract.corpus import Corpus
from dlrrec_torchrec.extract.llm.packages import check_packages
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.store.errors import Unfinished
from dlrrec_torchrec.store.manifest import digest

if TYPE_CHECKING:
    from dlrrec_torchrec.extract.llm.running import Told


class LanguageModelProvider:
    """Summaries, price tags, categories, likes and avoids as a language model reads the reviews.

    Args:
        summary_sentences: of a summary, at most.
        llm: the section of settings.
        cache_dir: where answers are kept (answers.sqlite).

    Raises DataError where the packages of the extra `llm` are missing (of `local-llm` for a local model), and
    for prompts and models that cannot be used.
    """

    name = "llm"

    def __init__(self, summary_sentences: int, llm: LlmConfig, cache_dir: Path):
        check_packages()
        from dlrrec_torchrec.extract.llm.local_model import is_local
        from dlrrec_torchrec.extract.llm.local_server import check_server_packages
        from dlrrec_torchrec.extract.llm.questions import Questions
        from dlrrec_torchrec.extract.llm.spending import Budget, known_prices

        self.questions = Questions(llm, summary_sentences)  # a local file is looked at first
        if is_local(llm):
            check_server_packages()
        self.settings = llm = self.questions.settings
        self.cache_dir, self.sentences, self.model = Path(cache_dir), summary_sentences, llm.model
        self.budget = Budget(llm, known_prices(llm))
        self.fingerprint = digest([1, self.questions.fingerprint])
        self.rows: list[dict[str, Any]] = []  # of the provenance table
        self.versions = self.failed = self.used = 0  # versions with words; without an answer; replies
        self.vocabulary: frozenset[str] | None = None  # of fold -1, once the items are described
        self.dropped: Counter[str] = Counter()  # names that are not in it -> items

    def begin(self) -> None:
        """Raise DataError where the key is missing, unless there are answers that may do without."""
        from dlrrec_torchrec.extract.llm.answer_store import FILE
        from dlrrec_torchrec.extract.llm.server import server_key

        if not (self.cache_dir / FILE).exists():
            server_key(self.settings)

    def read(self, corpus: Corpus) -> LanguageModelWriter:
        return LanguageModelWriter(self, corpus)

    def record(self, folder: Path) -> dict[str, Any]:
        """Write where the content came from into `folder`; return facts for the manifest.

        Raises Unfinished where more versions than llm.max_failed have no answer.
        """
        from dlrrec_torchrec.extract.llm.record import facts_of, write_provenance

        if self.failed > self.settings.max_failed * self.versions:
            reasons = Counter(row["reason"] for row in self.rows if row["reason"] and row["reviews"])
            told = "; ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(3))
            raise Unfinished(
                f"llm.max_failed (--max-failed): {self.failed:,} of {self.versions:,} versions of users and "
                f"items have no usable answer: {told}; all answers are kept: the same command asks again "
                "where the server did not answer, more --attempts or another model ask anew, and a higher "
                "--max-failed leaves these without content"
            )
        write_provenance(self.rows, self.dropped, folder)
        return facts_of(self)


class LanguageModelWriter:
    """Asks about entities; names of categories become one vocabulary a fold when all have been answered."""

    def __init__(self, provider: LanguageModelProvider, corpus: Corpus):
        self._provider = provider
        self._questions = provider.questions.about(corpus.texts)

    def describe(self, entities: Iterable[EntityReviews]) -> Iterator[Content]:
        """One Content for each of `entities`, in their order; Content() where there is no text, or no answer.

        Raises Unfinished where the budget is spent or the server keeps failing, and DataError where settings
        are wrong. All answers up to there are kept.
        """
        from dlrrec_torchrec.extract.llm.category_names import merged
        from dlrrec_torchrec.extract.llm.record import rows_of

        provider = self._provider
        answered = []
        for entity, told in self._told(entities):
            values = told.values
            values |= {field: merged(values.get(field, ())) for field in ("categories", "likes", "avoids")}
            answered.append((entity, values))
            provider.rows += rows_of(provider, entity, told)
            provider.versions += told.history is not None
            provider.failed += any(answer.reason for answer in told.answers)
            provider.used += sum(len(answer.keys) for answer in told.answers)
        allowed = self._vocabularies([(e.fold, v["categories"]) for e, v in answered if e.side == "item"])
        for entity, values in answered:
            sentences = split_sentences(values.get("summary"))[: provider.sentences]
            if entity.side == "item":
                kinds = tuple(name for name in values["categories"] if name in allowed[entity.fold])
                yield Content(tuple(sentences), values.get("price_tag", "none"), kinds)
            else:
                avoids = tuple(name for name in values["avoids"] if name not in values["likes"])
                yield Content(tuple(sentences), likes=values["likes"], avoids=avoids)

    def _told(self, entities: Iterable[EntityReviews]) -> Iterator[tuple[EntityReviews, Told]]:
        from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
        from dlrrec_torchrec.extract.llm.asking import Asker
        from dlrrec_torchrec.extract.llm.batch_api import answer_by_batches
        from dlrrec_torchrec.extract.llm.running import answer_all
        from dlrrec_torchrec.extract.llm.server import Server

        provider, settings = self._provider, self._provider.settings
        with AnswerStore(provider.cache_dir) as store:
            if settings.batch:
                yield from answer_by_batches(settings, provider.budget, store, self._questions, entities)
                return
            server = Server(settings, provider.budget, provider.questions.counter)
            asker = Asker(store, server, settings.attempts, settings.language)
            yield from answer_all(asker, server, self._questions, entities)

    def _vocabularies(self, named: list[tuple[int, tuple[str, ...]]]) -> dict[int, frozenset[str]]:
        """Those of the items' versions; items without training rows have that of the others."""
        from dlrrec_torchrec.extract.llm.category_names import vocabularies

        provider = self._provider
        if provider.vocabulary is not None:
            return {-1: provider.vocabulary}
        found = vocabularies(named)
        if named:
            provider.vocabulary = found.get(-1, frozenset())
            for fold, names in named:
                if fold == -1:
                    provider.dropped.update(set(names) - provider.vocabulary)
        return found
