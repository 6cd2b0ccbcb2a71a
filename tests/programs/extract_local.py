"""Extraction by a local model, the stand-in, for a test that ends it: ROOT, then local_options as JSON."""

import json
import sys
from pathlib import Path

from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract.llm import local_server
from dlrrec_torchrec.extract.stage import extract
from tests.extract.test_extract import FakeEncoder

local_server.PROGRAM, local_server._NEEDED = "tests.programs.local_model", ()
root, options = Path(sys.argv[1]), json.loads(sys.argv[2])
llm = LlmConfig(base_url=f"local:{root}/model.gguf", local_options=options)
folders = root / "split", root / "none", root / "content", root / "cache"
extract(ExtractConfig(provider="llm", folds=2), *folders, FakeEncoder(), llm=llm)
