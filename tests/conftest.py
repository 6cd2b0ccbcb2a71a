"""One small real run, made once, for every test that needs a trained model from real stages."""

import pytest
from hypothesis import settings

from dlrrec_torchrec.config import load_config
from dlrrec_torchrec.stages import run

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

TINY = {"ingest.size": "tiny", "train.epochs": 3, "train.batch_size": 128}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """(folder, configuration, lines printed) of the whole job on the `tiny` world."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    config = load_config(None, TINY)
    said = []
    run(config, root, say=said.append)
    return root, config, said
