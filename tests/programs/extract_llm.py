"""Extraction by a language model, for a test that kills it: ROOT, then settings of `llm` as JSON."""

import json
import sys
from pathlib import Path

from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract.stage import extract
from tests.extract.test_extract import FakeEncoder

root, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
config = ExtractConfig(provider="llm", folds=2)
extract(
    config,
    root / "split",
    root / "none",
    root / "content",
    root / "cache",
    FakeEncoder(),
    llm=LlmConfig(**settings),
)
