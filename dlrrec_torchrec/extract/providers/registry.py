"""The providers of content by name, and one's own by `MODULE:CLASS`.

A name is short for the class of a module; nothing is imported before a provider is chosen. One's own needs no
registration: `extract.provider=mypackage.content:MyProvider` takes any importable callable that makes a
`base.Provider`. It is called as `MyProvider(summary_sentences=5, **options)` with the settings
extract.summary_sentences and extract.provider_options (texts, which are written into the manifest: a key to
a service belongs into the environment). Where it has a parameter `llm`, it also gets the section of that
name; where it has one `cache_dir`, the folder of the run's caches.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from dlrrec_torchrec.config import LlmConfig
from dlrrec_torchrec.extract.providers.base import Provider
from dlrrec_torchrec.store.errors import DataError

_HERE = "dlrrec_torchrec.extract.providers"
PROVIDERS: dict[str, str] = {
    "offline": f"{_HERE}.offline:OfflineProvider",
    "llm": f"{_HERE}.language_model:LanguageModelProvider",
}


def make_provider(
    name: str,
    summary_sentences: int,
    options: Mapping[str, str] | None = None,
    llm: LlmConfig | None = None,
    cache_dir: Path = Path("cache"),
) -> Provider:
    """The provider called `name`: a key of PROVIDERS, or MODULE:CLASS.

    Args:
        summary_sentences: most sentences of a summary.
        options: keyword arguments of the provider's own.
        llm, cache_dir: for providers with parameters of these names.

    Raises DataError for a name that is not known or cannot be imported, and for options that the provider
    does not take or lacks.
    """
    factory = _factory(name)
    offered = {"llm": llm or LlmConfig(), "cache_dir": cache_dir}
    taken = inspect.signature(factory).parameters
    arguments = {"summary_sentences": summary_sentences} | dict(options or {})
    arguments |= {key: value for key, value in offered.items() if key in taken and key not in arguments}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise DataError(
            f"extract.provider_options (--provider-options): the provider '{name}' is called as "
            f"{factory.__name__}{inspect.signature(factory)}: {error}"
        ) from None
    return factory(**arguments)


def _factory(name: str) -> Callable[..., Provider]:
    setting = f"extract.provider (--provider): '{name}'"
    module, colon, attribute = PROVIDERS.get(name, name).partition(":")
    if not colon:
        close = difflib.get_close_matches(name, PROVIDERS, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise DataError(
            f"{setting} is not known; {hint}There are: {', '.join(PROVIDERS)}, and any importable class of "
            "your own as MODULE:CLASS"
        )
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"{setting} cannot be imported: {error}") from None
    if not callable(factory):
        raise DataError(f"{setting} is {factory!r}, which makes no provider")
    return factory
