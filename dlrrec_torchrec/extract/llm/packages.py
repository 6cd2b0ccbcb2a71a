"""The packages of the extra `llm`, which nothing else needs."""

from __future__ import annotations

import importlib.util

from dlrrec_torchrec.store.errors import DataError

_NEEDED = ("openai", "aiolimiter", "tenacity", "json_repair", "pydantic", "tiktoken", "genai_prices")


def check_packages() -> None:
    """Raise DataError where packages of the extra `llm` are missing."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise DataError(
            f"language models need {', '.join(missing)}: pip install 'dlrrec-torchrec[llm]' "
            "(extract.provider=offline needs none)"
        )
