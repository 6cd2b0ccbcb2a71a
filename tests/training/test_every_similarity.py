"""Every similarity of the SWING stage makes positives, and every kind of negatives trains on them."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.config import ContrastiveConfig, PrepareConfig, SwingStageConfig, TrainConfig
from dlrrec_torchrec.config.flags import run_settings
from dlrrec_torchrec.data.draws import NEGATIVES
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import NEIGHBORS
from dlrrec_torchrec.swing_stage import neighbors
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import papers_model
from tests.helpers.threads import one_thread  # noqa: F401
from tests.helpers.worlds import random_world


def choices(section, name):
    return {field.name: field.metadata["choices"] for field in dataclasses.fields(section)}[name]


SIMILARITIES = choices(SwingStageConfig, "similarity")


def shards_of(folder, similarity):
    """A small world whose neighbours are by this similarity, up to its shards; two neighbours are kept."""
    paths = random_world(3, users=16, items=12, rows=110, val=20, test=20).write(folder)
    neighbors(SwingStageConfig(similarity=similarity), paths.split, folder / "by")
    prepare(PrepareConfig(positives=2), paths.split, paths.content, folder / "by", paths.items, paths.shards)
    return paths


def trained(paths, out, **terms):
    settings = TrainConfig(epochs=1, batch_size=20, device="cpu")
    train(papers_model(), ContrastiveConfig(num_negatives=6, **terms), settings, "strict", paths.shards, out)
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_similarity_runs_through_to_the_training(tmp_path, similarity):
    paths = shards_of(tmp_path, similarity)
    entities = load_entities(paths.shards)
    for side in ("users", "items"):
        known = getattr(entities, side)
        table = read_table(tmp_path / "by" / side, NEIGHBORS).to_pylist()
        listed = {row["id"]: [known.codes[n] for n in row["neighbors"]][:2] for row in table}
        assert any(map(len, listed.values()))
        for name, positives in zip(known.ids, known.positives.tolist(), strict=True):
            assert [code for code in positives if code >= 0] == listed.get(name, [])
    record = trained(paths, tmp_path / "out")
    assert record["train_loss_ii"] > 0 and record["train_loss_uu"] > 0


def test_similarities_differ(tmp_path):
    found = set()
    for similarity in SIMILARITIES:
        paths = shards_of(tmp_path / similarity, similarity)
        entities = load_entities(paths.shards)
        found.add((*entities.users.positives.ravel().tolist(), *entities.items.positives.ravel().tolist()))
    assert len(found) == len(SIMILARITIES)


def test_every_kind_of_negatives_trains_and_makes_another_loss(tmp_path, capsys):
    assert choices(ContrastiveConfig, "negatives") == NEGATIVES
    paths, losses = shards_of(tmp_path, "swing"), {}
    for kind in NEGATIVES:
        losses[kind] = trained(paths, tmp_path / kind, negatives=kind, num_hard=2)["train_loss_uu"]
        said = "of the users have any" in capsys.readouterr().err
        assert said == (kind == "swing_hard")
    assert len(set(losses.values())) == len(NEGATIVES)
    assert losses["swing_hard"] > losses["corpus"] > losses["semi_hard"]  # more of them, fewer of them


def test_commands_of_the_page_are_understood():
    text = (Path(__file__).parents[2] / "docs" / "space.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(lines) > 1
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "dlrrec"
        run_settings(build_parser().parse_args(words))[0].check()
