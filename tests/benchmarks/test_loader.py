"""The loader's benchmark: random shards like prepare's, the bytes of a plain read, the command."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.benchmarks import loading
from dlrrec_torchrec.benchmarks.cases import LoaderCase
from dlrrec_torchrec.benchmarks.random_shards import DENSE, random_facts, write_random_shards
from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import part_files, read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import plain_spec

FACTS = random_facts(users=50, items=20, modalities=["user_text", "item_text"], positives=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "shards"
    write_random_shards(folder, 9000, FACTS)
    return folder


def rows(folder, positives=3, **options):
    return make_loader(folder, "train", 1000, plain_spec(folder, ["user_text"], positives), **options)


def test_random_shards_are_as_prepare_writes_them(shards):
    config = PrepareConfig()
    assert DENSE == config.dense and config.rows_per_shard == 8192
    parts = part_files(shards / "train")
    assert [pq.read_metadata(p).num_rows for p in parts] == [8192, 808]
    rows(shards).check()
    entities = load_entities(shards)
    assert (len(entities.users), len(entities.items)) == (50, 20)
    table = read_table(shards / "train", FACTS.row_schema())
    assert ShardFacts.read(shards).label_counts["positive"] == sum(table["label"].to_pylist())
    # Of the entities, except for the vectors, which leave a row out.
    for row in table.slice(0, 20).to_pylist():
        assert row["category"] == entities.items.category[row["item"]].tolist()
        positives = [k for k in row["user_positives"] if k >= 0]
        assert positives == [k for k in entities.users.positives[row["user"]].tolist() if k >= 0]


def test_what_is_there_is_not_written_again(shards):
    part = part_files(shards / "train")[0]
    before = part.stat().st_mtime_ns
    write_random_shards(shards, 9000, FACTS)
    assert part.stat().st_mtime_ns == before


def test_the_plain_read_is_of_the_columns_that_the_loader_reads(shards):
    loader = rows(shards, positives=0)
    columns = loader.dataset.reader.columns
    assert columns == ["label", "rating", "user", "item", "dense", "category", "user_text"]
    ranges = loading.column_ranges(shards / "train", columns)
    expected = 0
    for part in part_files(shards / "train"):
        group = pq.read_metadata(part).row_group(0)
        sizes = {group.column(k).path_in_schema: group.column(k).total_compressed_size for k in range(10)}
        expected += sum(sizes[name] for name in columns)
        low, high = min(s for s, _ in ranges[part]), max(s + n for s, n in ranges[part])
        assert low >= 4 and high <= part.stat().st_size  # after the magic number
    assert loading.read_ranges(ranges) == expected > 9000 * 768


def test_an_epoch_that_is_not_the_files_rows_ends_the_benchmark(shards):
    loading.check_rows(rows(shards, shuffle=True), shards / "train")
    with pytest.raises(DataError, match="not the files'"):
        loading.check_rows(rows(shards, rank=0, world_size=2), shards / "train")


def test_the_command(shards, tmp_path, capsys):
    flags = ["--shards", str(shards), "--modalities", "user_text", "--positives", "3", "--batch", "512"]
    flags += ["--rounds", "2", "--workers", "0", "1", "--out", str(tmp_path / "new")]
    assert cli.main(["bench", "loader", *flags]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "new" / "loader.json").read_text())
    assert report["benchmark"] == "loader" and report["rows"] == 9000
    results = {(r["kind"], r["workers"]): r for r in report["results"]}
    kinds = ["vectors", "ids", "ids without positives"]
    assert list(results) == [(kind, workers) for workers in (0, 1) for kind in kinds]
    for (kind, workers), result in results.items():
        assert ("user_text" in result["columns"]) == (kind == "vectors")
        assert ("user_positives" in result["columns"]) == (kind != "ids without positives")
        speed, seconds = result["rows_per_second"], result["seconds"]["loader"]
        assert speed["p90"] >= speed["median"] >= speed["p10"] > 0
        assert seconds["p10"] <= 9000 / speed["median"] <= seconds["p90"]
        assert ("rows_per_cpu_second" in result) == (workers == 0)
        assert result["share"]["median"] > 0 and kind in output
    saved_bytes = results["vectors", 0]["bytes"]["batches"] - results["ids", 0]["bytes"]["batches"]
    assert saved_bytes == 9000 * 768
    saved_bytes = (
        results["ids", 0]["bytes"]["batches"] - results["ids without positives", 0]["bytes"]["batches"]
    )
    assert saved_bytes == 9000 * 2 * 3 * 8


def test_random_rows_are_made_where_they_are_wanted(tmp_path, capsys):
    flags = ["--rows", "300", "--modalities", "--workers", "0", "--rounds", "1", "--warmup", "0", "--json"]
    flags += ["--keep", str(tmp_path / "kept"), "--out", str(tmp_path)]
    assert cli.main(["bench", "loader", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [r["kind"] for r in report["results"]] == ["ids", "ids without positives"]
    assert Manifest.read(tmp_path / "kept").rows["train"] == 300


def test_what_cannot_be_measured(monkeypatch, tmp_path):
    for wrong, match in (
        ({"batch": 0}, "--batch: 0"),
        ({"workers": [-1]}, "--workers: -1"),
        ({"modalities": ["sound"]}, "--modalities: 'sound' must begin with user_ or item_"),
    ):
        with pytest.raises(DataError, match=match):
            LoaderCase(**wrong)
    with pytest.raises(DataError, match="manifest.json: not there"):
        loading.run(LoaderCase(shards=str(tmp_path)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="one rank"):
        loading.run(LoaderCase())
