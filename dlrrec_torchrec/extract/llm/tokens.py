"""Counting tokens: with the model's own table where this machine has it, else by a stated estimate."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from dlrrec_torchrec.config.llm_section import OPENAI_URL

BYTES_PER_TOKEN = 4  # of UTF-8; English reviews have 4.4 (cl100k_base), so the estimate is on the safe side
_TABLES = "https://openaipublic.blob.core.windows.net/encodings/"
_NEWEST = "o200k_base"


class TokenCounter:
    """Tokens of texts. `name` says how they are counted.

    tiktoken's tables are used where they are in its cache (TIKTOKEN_CACHE_DIR, or its default), for models at
    OpenAI; nothing is downloaded.
    """

    def __init__(self, model: str, base_url: str):
        self.name, self._encoding = f"estimate: {BYTES_PER_TOKEN} bytes a token", None
        if base_url.rstrip("/") == OPENAI_URL and (found := _cached_encoding(model)):
            self.name, self._encoding = found.name, found

    def count(self, text: str) -> int:
        if self._encoding is None:
            return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
        return len(self._encoding.encode(text, disallowed_special=()))

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of the text with at most so many tokens."""
        if self._encoding is None:
            return text.encode("utf-8", "replace")[: tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
        found = self._encoding.encode(text, disallowed_special=())
        return text if len(found) <= tokens else self._encoding.decode(found[:tokens], errors="ignore")


def _cached_encoding(model: str):
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:  # newer than the library
        name = _NEWEST
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    url = f"{_TABLES}{name}.tiktoken"
    if not (folder / hashlib.sha1(url.encode()).hexdigest()).exists():
        return None
    return tiktoken.get_encoding(name)
