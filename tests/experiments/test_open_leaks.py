"""The table of leaks of `dlrrec audit leakage`: a clean run has none open, and each is found where it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.experiments.eight_leaks import KEY, LEAKS, Known
from dlrrec_torchrec.experiments.leaky_shards import VIEWS, compose
from dlrrec_torchrec.experiments.leaky_splits import recombine, with_copies
from dlrrec_torchrec.experiments.open_leaks import (
    CLOSED,
    FEW,
    OPEN,
    TRACE,
    UNKNOWN,
    any_open,
    describe_leaks,
    open_leaks,
)
from dlrrec_torchrec.experiments.rows_apart import foreign_means, own_ratings_kept, own_vectors_kept
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.split.copied_texts import copies
from dlrrec_torchrec.split.stage import split
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.schema import SPLIT, SPLITS


@pytest.fixture
def linked(tiny_run, tmp_path):
    """(settings, paths) of a run whose folders are those of the tiny run, to be replaced one by one."""
    root, config, _ = tiny_run
    for folder in root.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    return dataclasses.replace(config), RunPaths(tmp_path, tmp_path)


def verdicts(config, paths) -> dict[str, tuple[str, str]]:
    return {verdict.leak: (verdict.state, verdict.why) for verdict in open_leaks(config, paths)}


def replace(path: Path) -> Path:
    path.unlink()
    return path


def edit(folder: Path, source: Path, **changes) -> None:
    """Put a copy of a stage's manifest into `folder`, beside links to its other files."""
    manifest = Manifest.read(source)
    for name, value in changes.items():
        setattr(manifest, name, value)
    if not folder.exists():
        folder.mkdir()
        for file in source.iterdir():
            if file.name != "manifest.json":
                (folder / file.name).symlink_to(file)
    manifest.write(folder)


def made(paths, view: str, root: Path, settings) -> Path:
    """The shards of a view of the run's split."""
    recombine(paths.split, root / view / "split", VIEWS[view])
    shards = root / view / "shards"
    plain = dataclasses.replace(settings, affinity=False)
    prepare(plain, root / view / "split", paths.content, paths.swing, paths.items, shards)
    return shards


def test_a_clean_run_has_no_leak_open(linked):
    config, paths = linked
    found = verdicts(config, paths)
    assert list(found) == list(LEAKS)
    assert [state for leak, (state, _) in found.items() if leak != "h"] == [CLOSED] * 7
    assert found["h"][0] in (CLOSED, TRACE)  # the world's templates give a few texts twice
    assert str(own_vectors_kept(paths.shards, paths.content)) in found["a"][1]
    assert str(own_ratings_kept(paths.shards)) in found["d"][1]
    assert "made of the training rows of this split" in found["b"][1]
    assert not any_open(open_leaks(config, paths))
    assert len(list(describe_leaks(open_leaks(config, paths)))) == 1 + 2 * len(LEAKS)


def test_a_by_vectors_from_tables(linked):
    config, paths = linked
    name = next(iter(config.variants))
    changed = dataclasses.replace(config, variants={"by-id": {"model": {"vectors": "table"}}})
    assert verdicts(changed, paths)["a"][0] == OPEN and "by-id" in verdicts(changed, paths)["a"][1]
    trained = paths.trainings.resolve() / name
    replace(paths.trainings).mkdir()
    facts = Manifest.read(trained).facts | {"leave_one_out": False}
    edit(paths.train(name), trained, facts=facts)
    state, why = verdicts(config, paths)["a"]
    assert state == OPEN and name in why


@pytest.mark.parametrize("known", [Known(own_content=True), Known(own_rating=True)])
def test_a_and_d_by_the_rows_themselves(linked, tmp_path, known):
    config, paths = linked
    shards = {view: made(paths, view, tmp_path / "views", config.prepare) for view in ("base", "own")}
    compose(shards, known, tmp_path / "leaky")
    replace(paths.shards)
    opened, closed = ("a", "d") if known.own_content else ("d", "a")
    (tmp_path / "leaky").rename(paths.shards)
    found = verdicts(config, paths)
    assert found[opened][0] == OPEN and "on purpose" in found[opened][1] and found[closed][0] != OPEN
    stored = Manifest.read(paths.shards)
    del stored.config[KEY]  # now nothing but the rows tells
    stored.inputs |= {"split": Manifest.read(paths.split).fingerprint}
    stored.write(paths.shards)
    found = verdicts(config, paths)
    assert found[opened][0] == OPEN and found[closed][0] == CLOSED
    rows = Manifest.read(paths.shards).rows["train"]
    of = own_vectors_kept(paths.shards, paths.content) if opened == "a" else own_ratings_kept(paths.shards)
    assert of.count == of.rows <= rows and of.rows > rows / 2 and str(of) in found[opened][1]
    clean = own_vectors_kept(shards["base"], paths.content), own_ratings_kept(shards["base"])
    assert all(counted.rows > rows / 2 and counted.share < 0.2 for counted in clean)


def test_b_and_c_where_a_stage_read_another_split(linked):
    config, paths = linked
    for leak, folder in (("b", paths.content), ("c", paths.swing)):
        source = folder.resolve()
        edit(replace(folder), source, inputs=Manifest.read(source).inputs | {"split": "another"})
        state, why = verdicts(config, paths)[leak]
        assert state == UNKNOWN and "earlier split" in why


def test_b_where_vectors_or_the_provider_are_the_users_own(linked):
    config, paths = linked
    source = paths.shards.resolve()
    changed = Manifest.read(source).config | {"vectors": {"item_audio": "audio.parquet:id,vector"}}
    edit(replace(paths.shards), source, config=changed)
    found = verdicts(config, paths)
    assert found["a"][0] == found["b"][0] == UNKNOWN and "item_audio" in found["b"][1]


def test_c_where_liked_rows_alone_make_neighbours(linked):
    config, paths = linked
    source = paths.swing.resolve()
    edit(replace(paths.swing), source, config=Manifest.read(source).config | {"pairs": "liked"})
    assert verdicts(config, paths)["c"][0] == OPEN


def test_d_where_other_ratings_are_in_the_means(linked, tmp_path):
    config, paths = linked
    table = read_table(paths.split / "train", SPLIT)
    source = paths.split.resolve()
    replace(paths.split).mkdir()
    for name in ("val", "test"):
        (paths.split / name).symlink_to(source / name)
    ratings = table["rating"].to_numpy().copy()
    ratings[0] = 6 - ratings[0] if ratings[0] != 3 else 5
    place = table.schema.get_field_index("rating")
    write_table(table.set_column(place, table.schema.field("rating"), [ratings]), paths.split / "train")
    edit(paths.split, source)  # the manifest of the split as it was
    state, why = verdicts(config, paths)["d"]
    assert state == OPEN and why.startswith("2 of ")  # its user and its item
    smoothing = Manifest.read(paths.shards).config["smoothing"]
    assert foreign_means(paths.shards, source, smoothing).count == 0


def test_e_f_and_g_by_settings_and_manifests(linked, tmp_path):
    config, paths = linked
    paper = dataclasses.replace(config, protocol="paper")
    name = next(iter(config.variants))
    assert verdicts(paper, paths)["e"][0] == OPEN and verdicts(paper, paths)["f"][0] == CLOSED
    trained = paths.trainings.resolve() / name
    replace(paths.trainings).mkdir()
    facts = Manifest.read(trained).facts | {"split": "test", "rule": "paper"}
    edit(paths.train(name), trained, facts=facts)
    state, why = verdicts(config, paths)["e"]
    assert state == OPEN and name in why and "rule paper" in why
    split(config.split, "paper", paths.reviews, replace(paths.split))
    state, why = verdicts(config, paths)["f"]
    assert state == OPEN and "reviews were dropped so" in why
    source = paths.shards.resolve()
    edit(replace(paths.shards), source, config=Manifest.read(source).config | {"statistics": "row"})
    assert verdicts(config, paths)["g"][0] == OPEN


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_h_counts_copies_exactly(linked, share):
    config, paths = linked
    source = paths.split.resolve()
    with_copies(source, replace(paths.split), share, 0)
    tested = read_table(source / "test", SPLIT).num_rows
    found = copies(paths.split)
    assert found.tested == tested and found.pairs == round(share * tested) <= found.copied
    state, why = verdicts(config, paths)["h"]
    assert state == OPEN and str(found) in why


def test_a_few_copies_are_a_trace(linked):
    config, paths = linked
    source = paths.split.resolve()
    few = max(1, int(FEW * read_table(source / "test", SPLIT).num_rows / 2))
    replace(paths.split).mkdir()
    for name in SPLITS:
        table = read_table(source / name, SPLIT)
        if name == "test":  # without the world's own copies
            texts = [
                f"{n} is a text that only this very review has, as it should be." for n in range(len(table))
            ]
            table = table.set_column(table.schema.get_field_index("text"), "text", [texts])
            copied = table.slice(0, few)
            table = table.cast(SPLIT)
            write_table(copied.cast(SPLIT), paths.split / "train", first=1)
        write_table(table, paths.split / name)
    edit(paths.split, source)
    state, why = verdicts(config, paths)["h"]
    assert (
        state == TRACE
        and why.startswith(f"{few} of ")
        and f"{few} by user and item, {few} by their text" in why
    )


def test_folders_that_are_not_there_leave_leaks_to_the_settings(tiny_run, tmp_path):
    config = tiny_run[1]
    found = verdicts(config, RunPaths(tmp_path, tmp_path))
    assert [state for state, _ in found.values()] == [CLOSED] * 7 + [UNKNOWN]
    row = dataclasses.replace(config, prepare=dataclasses.replace(config.prepare, statistics="row"))
    assert verdicts(row, RunPaths(tmp_path, tmp_path))["g"][0] == OPEN


# --- the command


def test_the_command_tells_and_its_exit_status_says_whether_one_is_open(linked, capsys):
    config, paths = linked
    call = ["audit", "leakage", "--run-dir", str(paths.root), "--no-trees"]
    assert main(call) == 0
    told = capsys.readouterr().out
    assert all(f"({leak}) " in told for leak in LEAKS) and "AUC" not in told
    assert main([*call, "--json", "--set", "protocol=paper"]) == 1
    body = json.loads(capsys.readouterr().out)
    states = {verdict["leak"]: verdict["state"] for verdict in body["verdicts"]}
    assert states["e"] == OPEN and list(states) == list(LEAKS) and "train_auc" not in body
    assert np.all([verdict["line"] == LEAKS[verdict["leak"]] for verdict in body["verdicts"]])


def test_a_run_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["audit", "leakage", "--run-dir", str(tmp_path / "none"), "--no-trees"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
