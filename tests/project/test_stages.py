"""The whole job on the tiny world: complete, resumable after a crash anywhere, and repeatable."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrrec_torchrec.cli import build_parser, main
from dlrrec_torchrec.config import load_config
from dlrrec_torchrec.config.names import sections
from dlrrec_torchrec.serving.recommend import recommend
from dlrrec_torchrec.stages import STAGES, Stage, run, run_stage
from dlrrec_torchrec.stages.actions import Work, check_prepare_input
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.store.schema import REVIEWS, SPLIT, SPLITS


def metrics(root):
    return json.loads((root / "evaluation" / "metrics.json").read_text())


def same(a, b):
    """Equal numbers, NaN and null included."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def test_every_stage_leaves_its_output(tiny_run):
    root, config, printed = tiny_run
    paths = run_paths(root)[0]
    for stage in STAGES.values():
        folder = getattr(paths, stage.outputs[0])
        for name in [folder / v for v in config.variants] if stage.each == "variant" else [folder]:
            assert Manifest.read(name).seconds > 0, name
    assert (root / "report" / "index.html").exists()
    assert [line.split()[0] for line in printed] == [
        *("ingest", "split", "extract", "swing", "prepare", "train", "train", "evaluate", "refit", "report")
    ]
    results = metrics(root)
    assert set(config.variants) <= set(results["models"]) and results["baselines"]
    assert results["protocol"] == "strict" and 0.5 < results["reachable_auc"] <= 1


def test_a_second_run_repeats_nothing(tiny_run):
    root, config, _ = tiny_run
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")}
    printed = []
    run(config, root, say=printed.append)
    assert printed and all("up to date" in line for line in printed)
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


def test_a_crash_in_any_stage_changes_nothing_in_the_end(tiny_run, tmp_path, monkeypatch):
    """One run that crashes at the end of each stage in turn, and is started again after every crash."""
    finished, config, _ = tiny_run
    root = tmp_path / "again"
    for name in ("reviews", "items", "cache"):
        shutil.copytree(finished / name, root / name)
    write, names = Manifest.write, list(STAGES)
    crashing = None

    def crash_at_the_end(self, folder):
        if self.stage == crashing:
            raise Crash
        write(self, folder)

    monkeypatch.setattr(Manifest, "write", crash_at_the_end)
    for number, crashing in enumerate(names[1:-1], 1):
        lines = []
        with pytest.raises(Crash):
            run(config, root, say=lines.append)
        # What was whole is kept; the stage that crashed the last time is carried out.
        assert reused(lines) == names[: max(1, number - 1)], crashing
    crashing, lines = None, []
    run(config, root, say=lines.append)
    assert reused(lines) == names[:-2]
    assert same(metrics(root), metrics(finished))


def reused(lines):
    """The stages that were up to date."""
    return list(dict.fromkeys(line.split()[0] for line in lines if "up to date" in line))


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
        {"ingest.size": "tiny", "seeds": 2, "refit": False, "train.epochs": 1, "train.batch_size": 128}
        | {"evaluate.peers": False, "variants": {"dlrrec": {}}},
    )
    printed = []
    run(config, root, say=printed.append)
    assert printed[0].startswith("ingest") and "up to date" in printed[0]
    first, second = (metrics(root / f"seed-{k}") for k in (0, 1))
    assert first["models"]["dlrrec"] != second["models"]["dlrrec"]
    summary = json.loads((root / "report" / "metrics.json").read_text())
    assert "dlrrec" in json.dumps(summary)


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.inputs])
def test_a_missing_input_names_the_command_that_writes_it(tmp_path, name):
    every = run_paths(tmp_path)
    writer = next(s.name for s in STAGES.values() if STAGES[name].inputs[0] in s.outputs)
    with pytest.raises(DataError, match=f"run `dlrrec {writer} --run-dir {tmp_path}` first"):
        run_stage(name, load_config(None), every)


def test_the_table_is_in_order():
    """Every input is an output of a stage before, and every folder is written by one stage."""
    written = set()
    for stage in STAGES.values():
        assert set(stage.inputs) <= written
        assert set(stage.also_reads) <= written | {"cache"}
        assert not written & set(stage.outputs)
        written |= set(stage.outputs)
    assert set(sections()) == {name for stage in STAGES.values() for name in stage.sections}


def test_a_new_stage_is_one_entry(tmp_path, monkeypatch):
    """It is a command with its settings, it runs in its place, and it can be the last one."""
    ran = []

    def act(work):
        ran.append((work.paths, work.config.split.seed))
        return Manifest("count", {}, {}, rows={"things": 3})

    new = Stage("count", "count things", "dlrrec count", act, (), ("content",), sections=("split",))
    monkeypatch.setitem(STAGES, "count", new)
    first = dataclasses.replace(STAGES["ingest"], action=lambda work: Manifest("ingest", {}, {}))
    monkeypatch.setattr("dlrrec_torchrec.stages.STAGES", {"ingest": first, "count": new})
    printed = []
    run(load_config(None, {"seeds": 2}), tmp_path, until="count", say=printed.append)
    assert ran == [(paths, number) for number, paths in enumerate(run_paths(tmp_path, 2))]
    assert [line.split()[0] for line in printed] == ["ingest", "seed", "count", "seed", "count"]
    ran.clear()
    assert main(["count", "--run-dir", str(tmp_path), "--seed", "4", "--seed-number", "1"]) == 0
    assert ran == [(run_paths(tmp_path, 2)[1], 5)]
    assert build_parser().parse_args(["run", "--until", "count"]).until == "count"


def half_stars(folder: Path, factor: float = 1.0) -> dict:
    """Settings of a file of ratings, half a star to five, times `factor`."""
    rows = [f"u{n % 12},i{n % 7},{(n % 10 / 2 + 0.5) * factor}" for n in range(84)]
    (folder / "r.csv").write_text("\n".join(["user,item,rating", *rows]))
    columns = {"user": "user", "item": "item", "rating": "rating"}
    return {"ingest.source": "table", "ingest.reviews": str(folder / "r.csv"), "ingest.columns": columns}


def test_a_common_scale_of_ratings_needs_no_setting(tmp_path, capsys):
    config = load_config(None, half_stars(tmp_path))
    run(config, tmp_path / "run", until="split", say=lambda line: None)
    assert "note: ratings of 0.5 to 5: positive from 4, 29% of them" in capsys.readouterr().err
    facts = Manifest.read(tmp_path / "run" / "split").facts
    for positive in (0.5, 7):
        wrong = load_config(None, half_stars(tmp_path) | {"split.positive_rating": positive})
        with pytest.raises(DataError, match=f"{positive} leaves one label only among ratings of 0.5 to 5"):
            run(wrong, tmp_path / "wrong", until="split", say=lambda line: None)
    assert facts["rating_range"] == [0.5, 5.0] and facts["positive_rating"] == 4.0
    check_prepare_input(Work(config, *run_paths(tmp_path / "run"), ()))


def test_no_positive_rating_names_the_flag(tmp_path):
    settings = half_stars(tmp_path, factor=0.6)
    with pytest.raises(DataError, match="no rating is positive.* 0.3 to 3.*--positive-rating 3"):
        run(load_config(None, settings), tmp_path / "run", until="split", say=lambda line: None)
    config = load_config(None, settings | {"split.positive_rating": 3})
    run(config, tmp_path / "run", until="split", say=lambda line: None)


def test_ratings_outside_the_range_stop_a_run_after_the_split(tmp_path):
    """Not hours later; and the message's range will do."""
    settings = half_stars(tmp_path) | {"prepare.rating_range": [1.0, 5.0]}
    with pytest.raises(DataError, match=r"holds 0\.5 to 5 .*--rating-range 0\.5 5, .*split.positive_rating"):
        run(load_config(None, settings), tmp_path / "run", say=lambda line: None)
    assert (tmp_path / "run" / "split").exists() and not (tmp_path / "run" / "content").exists()
    run(load_config(None, settings), tmp_path / "run", until="split", say=lambda line: None)  # needs no range
    config = load_config(None, settings | {"prepare.rating_range": [0.5, 5.0]})
    check_prepare_input(Work(config, *run_paths(tmp_path / "run"), ()))


def test_ratings_on_no_common_scale_name_the_flags(tmp_path):
    settings = half_stars(tmp_path, factor=100)
    with pytest.raises(DataError, match="holds 50 to 500.*prepare.rating_range .* 50 to 500") as error:
        run(load_config(None, settings), tmp_path / "run", say=lambda line: None)
    assert "--positive-rating" in str(error.value) and "counts" in str(error.value)
    settings |= {"split.positive_rating": 400}
    with pytest.raises(DataError, match="50 to 500, are on no common scale.*--rating-range 50 500"):
        run(load_config(None, settings), tmp_path / "run", say=lambda line: None)
    config = load_config(None, settings | {"prepare.rating_range": [50, 500]})
    run(config, tmp_path / "run", until="split", say=lambda line: None)
    check_prepare_input(Work(config, *run_paths(tmp_path / "run"), ()))


def test_help_imports_nothing_heavy():
    code = "import sys; from dlrrec_torchrec.cli import build_parser; build_parser(); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchrec", "polars", "numba", "swing", "sklearn"} & set(process.stdout.split())
