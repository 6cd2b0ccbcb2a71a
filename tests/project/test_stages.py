"""The whole job on the tiny world: complete, resumable after a crash anywhere, and repeatable."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dlrrec_torchrec.config import load_config
from dlrrec_torchrec.serving.recommend import recommend
from dlrrec_torchrec.stages import STAGES, run, run_stage
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.store.schema import REVIEWS, SPLIT, SPLITS

FOLDERS = ("reviews", "split", "content", "swing", "shards", "evaluation")


def metrics(root):
    return json.loads((root / "evaluation" / "metrics.json").read_text())


def same(a, b):
    """Equal numbers, NaN and null included."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def test_every_stage_leaves_its_output(tiny_run):
    root, config, said = tiny_run
    for name in FOLDERS:
        assert Manifest.read(root / name).seconds > 0, name
    for name in config.variants:
        assert Manifest.read(root / "train" / name)
    assert (root / "report" / "index.html").exists()
    assert [line.split()[0] for line in said] == [
        *("ingest", "split", "extract", "swing", "prepare", "train", "train", "evaluate")
    ]
    found = metrics(root)
    assert set(config.variants) <= set(found["models"]) and found["baselines"]
    assert found["protocol"] == "strict" and 0.5 < found["reachable_auc"] <= 1


def test_a_second_run_repeats_nothing(tiny_run):
    root, config, _ = tiny_run
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")}
    said = []
    run(config, root, say=said.append)
    assert said and all("up to date" in line for line in said)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")} == before


def test_nothing_that_a_user_has_reviewed_is_recommended(tiny_run):
    root, _, _ = tiny_run
    paths = run_paths(root)[0]
    parts = {name: pairs(root / "split" / name, SPLIT) for name in SPLITS}
    every = pairs(paths.reviews, REVIEWS)
    known = {item for _, item in parts["train"]}
    parts["dropped"] = {(u, i) for u, i in every.difference(*parts.values()) if i in known}
    users = {name: {user for user, _ in rows} for name, rows in parts.items()}
    tested, dropped = users["train"] & users["val"] & users["test"], users["dropped"]
    assert tested and dropped, "or this proves nothing"
    for user in (*sorted(tested)[:3], *sorted(dropped)[:3]):
        best = recommend(paths.shards, paths.train("dlrrec"), user, 10**6, reviews_dir=paths.reviews)
        reviewed = {item for u, item in every if u == user}
        assert {item.item_id for item in best.items} == known - reviewed
        assert best.seen == len(reviewed) and best.known_user == (user in users["train"])


def pairs(folder, columns):
    """The (user, item) pairs of a folder of reviews."""
    table = read_table(folder, columns, ["user_id", "item_id"])
    return set(zip(*(column.to_pylist() for column in table.columns), strict=True))


class Crash(Exception):
    pass


@pytest.mark.parametrize("stage", ["split", "extract", "swing", "prepare", "train", "evaluate"])
def test_a_crash_in_any_stage_changes_nothing_in_the_end(tiny_run, tmp_path, monkeypatch, stage):
    finished, config, _ = tiny_run
    root = tmp_path / "again"
    shutil.copytree(finished, root)
    paths = run_paths(root)[0]
    after = STAGES[STAGES.index(stage) :]
    places = {"split": paths.split, "extract": paths.content, "swing": paths.swing, "prepare": paths.shards}
    places |= {"train": root / "train", "evaluate": paths.evaluation, "report": paths.report}
    for name in after:
        shutil.rmtree(places[name])

    from dlrrec_torchrec.store.manifest import Manifest

    writes = Manifest.write

    def crash_at_the_end(self, folder):
        if self.stage == crashing:
            raise Crash
        writes(self, folder)

    crashing = Manifest.read(
        {"train": finished / "train" / "dlrrec"}.get(stage, finished / places[stage].name)
    ).stage
    monkeypatch.setattr(Manifest, "write", crash_at_the_end)
    with pytest.raises(Crash):
        run(config, root, say=lambda line: None)
    monkeypatch.undo()
    said = []
    run(config, root, say=said.append)
    reused = dict.fromkeys(line.split()[0] for line in said if "up to date" in line)
    assert list(reused) == list(STAGES[: STAGES.index(stage)])
    assert same(metrics(root), metrics(finished))


def test_kill_9_while_training(tiny_run, tmp_path):
    finished, config, _ = tiny_run
    root = tmp_path / "killed"
    shutil.copytree(finished, root)
    for name in ("train", "evaluation", "report"):
        shutil.rmtree(root / name)
    (root / "config.yaml").write_text(json.dumps(jsonable(config)))
    command = [sys.executable, "-m", "dlrrec_torchrec", "run", "--run-dir", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = root / "train" / "dlrrec" / "metrics.jsonl"
    limit = time.monotonic() + 240
    while not lines.exists() or not lines.read_text():  # the first epoch is done, the last is not
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "train" / "dlrrec" / "manifest.json").exists()
    run(config, root, say=lambda line: None)
    assert same(metrics(root), metrics(finished))


def test_several_seeds_share_reviews_and_cache(tiny_run, tmp_path):
    finished, _, _ = tiny_run
    root = tmp_path / "seeds"
    for name in ("reviews", "items", "cache"):
        shutil.copytree(finished / name, root / name)
    config = load_config(
        None,
        {"ingest.size": "tiny", "seeds": 2, "train.epochs": 1, "train.batch_size": 128}
        | {"variants": {"dlrrec": {}}},
    )
    said = []
    run(config, root, say=said.append)
    assert "up to date" in said[1]  # the reviews
    one, two = (metrics(root / f"seed-{k}") for k in (0, 1))
    assert one["models"]["dlrrec"] != two["models"]["dlrrec"]
    summary = json.loads((root / "report" / "metrics.json").read_text())
    assert "dlrrec" in json.dumps(summary)


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(DataError, match="run the stage that writes 'reviews' first"):
        run_stage("split", load_config(None), run_paths(tmp_path)[0])
