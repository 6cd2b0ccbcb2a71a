"""Tables, manifests and atomic folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import part_files, read_batches, read_table, write_table, write_tables
from dlrrec_torchrec.store.folders import atomic_folder
from dlrrec_torchrec.store.manifest import Manifest, file_digest, stage_output
from dlrrec_torchrec.store.mapped import mapped_zeros


def test_179_distinct_types():
    types = schema.category_types()
    assert len(types) == len(set(types)) == 179
    assert types == sorted(types) and all(types)


def test_tables_round_trip_in_parts(tmp_path):
    table = pa.table({"id": ["a", "b", "c"], "neighbors": [["b"], [], None], "scores": [[1.0], [], None]})
    table = table.cast(schema.NEIGHBORS)
    write_table(table, tmp_path, rows_per_part=2)
    assert len(part_files(tmp_path)) == 2
    assert read_table(tmp_path, schema.NEIGHBORS).equals(table)
    assert read_table(tmp_path, schema.NEIGHBORS, ["scores"]).column_names == ["scores"]


def test_an_empty_table_is_a_file_too(tmp_path):
    write_table(schema.NEIGHBORS.empty_table(), tmp_path)
    assert read_table(tmp_path, schema.NEIGHBORS).num_rows == 0


def test_tables_are_written_and_read_a_few_rows_at_a_time(tmp_path):
    rows = [
        pa.table({"id": [f"{n}", "x"], "neighbors": [[], ["b"]], "scores": [[], [1.0]]}) for n in range(5)
    ]
    rows = [table.cast(schema.NEIGHBORS) for table in rows]
    assert write_tables(iter(rows), schema.NEIGHBORS, tmp_path, rows_per_part=4) == 10
    assert [pq.read_metadata(part).num_rows for part in part_files(tmp_path)] == [4, 4, 2]
    assert read_table(tmp_path, schema.NEIGHBORS).equals(pa.concat_tables(rows).combine_chunks())
    batches = list(read_batches(tmp_path, schema.NEIGHBORS, ["scores", "id"], rows=3))
    assert [batch.num_rows for batch in batches] == [3, 1, 3, 1, 2]
    assert batches[0].column_names == ["scores", "id"]
    assert pa.concat_tables(batches)["id"].to_pylist() == pa.concat_tables(rows)["id"].to_pylist()
    assert write_tables([], schema.NEIGHBORS, tmp_path / "empty") == 0
    assert read_table(tmp_path / "empty", schema.NEIGHBORS).num_rows == 0


def test_batches_name_a_wrong_or_damaged_part(tmp_path):
    kind = pa.schema([("id", pa.int32())])
    write_table(pa.table({"id": [1]}).cast(kind), tmp_path)
    with pytest.raises(DataError, match=r"part-00000.parquet: column 'id' has type int32, expected string"):
        list(read_batches(tmp_path, schema.NEIGHBORS, ["id"]))
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"part-00000.parquet: damaged Parquet file"):
        list(read_batches(tmp_path, schema.NEIGHBORS, ["id"]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["a"], "scores": [[1.0]]}, ["part-00000.parquet", "'neighbors' is missing", "id, scores"]),
        ({"id": [1], "neighbors": [["b"]], "scores": [[1.0]]}, ["'id' has type int64", "expected string"]),
    ],
)
def test_wrong_columns_are_named(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError) as error:
        read_table(tmp_path, schema.NEIGHBORS)
    for word in words:
        assert word in str(error.value)


def test_a_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="run the stage that writes"):
        read_table(tmp_path / "none", schema.NEIGHBORS)
    with pytest.raises(DataError, match="run the stage that writes 'none' first"):
        Manifest.read(tmp_path / "none")


def test_a_damaged_part_is_named(tmp_path):
    rows = {"id": [f"u{k}" for k in range(2000)], "neighbors": [["b"]] * 2000, "scores": [[1.0]] * 2000}
    write_table(pa.table(rows, schema=schema.NEIGHBORS), tmp_path, 1000)
    second = tmp_path / "part-00001.parquet"
    body = second.read_bytes()
    second.write_bytes(body[:4] + bytes(400) + body[404:])  # the footer stays
    for broken in (second.read_bytes(), body[:-20]):
        second.write_bytes(broken)
        for limit in (None, 1500):
            with pytest.raises(DataError, match="part-00001.parquet: damaged Parquet file .*run the stage"):
                read_table(tmp_path, schema.NEIGHBORS, rows=limit)


@pytest.mark.parametrize("missing", ["stage", "config", "inputs", "rows", "facts", "schema_version"])
def test_a_manifest_without_a_part_is_named(tmp_path, missing):
    Manifest("swing", {"a": 1}, {"b": "c"}).write(tmp_path)
    path = tmp_path / "manifest.json"
    whole = json.loads(path.read_text())
    for body in ({k: v for k, v in whole.items() if k != missing}, whole | {missing: None}):
        path.write_text(json.dumps(body))
        with pytest.raises(DataError, match=f"manifest.json: '{missing}' is missing or damaged; delete"):
            Manifest.read(tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="manifest.json: .* is missing or damaged"):
        Manifest.read(tmp_path)


def test_a_failing_stage_leaves_the_old_output(tmp_path):
    target = tmp_path / "out"
    with stage_output(Manifest("s", {"a": 1}, {}), target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target, "s") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (target / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_stage_go(tmp_path):
    (tmp_path / ".out.tmp-1").mkdir()
    (tmp_path / ".out.old-1").mkdir()
    with atomic_folder(tmp_path / "out", "s") as folder:
        (folder / "x").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_manifest_is_current_only_for_equal_settings_and_inputs(tmp_path):
    manifest = Manifest("s", {"a": 1}, {"reviews": "f"})
    assert manifest.current(tmp_path / "out") is None
    with stage_output(manifest, tmp_path / "out"):
        manifest.rows["train"] = 3
    current = Manifest("s", {"a": 1}, {"reviews": "f"}).current(tmp_path / "out")
    assert (
        current is not None
        and current.reused
        and current.rows == {"train": 3}
        and current.peak_memory_mib > 0
    )
    assert Manifest("s", {"a": 2}, {"reviews": "f"}).current(tmp_path / "out") is None
    assert Manifest("s", {"a": 1}, {"reviews": "g"}).current(tmp_path / "out") is None
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Manifest.read(tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "command"),
    [("prepare", "dlrrec prepare"), ("train", "dlrrec train"), ("ingest-items", "dlrrec ingest")],
)
def test_what_an_earlier_version_made_names_the_command_that_makes_it_anew(tmp_path, stage, command):
    Manifest(stage, {}, {}, schema_version=2).write(tmp_path)
    with pytest.raises(DataError) as error:
        Manifest.read(tmp_path)
    for words in (
        f"{tmp_path}/manifest.json",
        f"schema 2, this is {schema.SCHEMA_VERSION}",
        f"`{command}` this part",
        "`dlrrec run`",
    ):
        assert words in str(error.value)
    assert Manifest(stage, {}, {}).current(tmp_path) is None  # so the stage itself just runs again
    Manifest(stage, {}, {}, schema_version=schema.SCHEMA_VERSION + 1).write(tmp_path)
    with pytest.raises(DataError, match="later version of dlrrec .schema .*; install that"):
        Manifest.read(tmp_path)


def test_file_digest_sees_contents_and_names(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("1")
    first = file_digest([a, b])
    assert first == file_digest([b, a]) != file_digest([a])
    b.write_text("2")
    assert file_digest([a, b]) != first


@pytest.mark.parametrize("shape", [(3, 2), (0, 2)])
def test_an_array_in_a_file_is_of_zeros_and_stays(tmp_path, shape):
    array = mapped_zeros(tmp_path / "numbers", np.float16, shape)
    assert array.shape == shape and array.dtype == np.float16 and not array.any()
    array[:2] = 1.5
    again = mapped_zeros(tmp_path / "other", np.int64, (2,))
    assert not again.any() and (array[:2] == 1.5).all()


def test_a_disk_without_room_is_told_before_numbers_are_written(tmp_path):
    """A file may have 4 KB in this process; a full disk would end it by SIGBUS, without a word."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from dlrrec_torchrec.store.mapped import mapped_zeros\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "mapped_zeros(sys.argv[1], np.float64, (400,)).fill(1)\n"
        "mapped_zeros(sys.argv[1], np.float64, (4000,)).fill(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "numbers")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "0.0 MiB more cannot be kept there (File too large)" in done.stderr


def test_a_folder_that_another_process_is_making_is_left_alone(tmp_path):
    code = (
        "import sys\n"
        "from dlrrec_torchrec.store.folders import atomic_folder\n"
        "with atomic_folder(sys.argv[1], 'split') as folder:\n"
        "    print(folder, flush=True)\n"
        "    input()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "split")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        folder = Path(other.stdout.readline().strip())
        with pytest.raises(DataError, match=f"another process .number {other.pid}. is making it"):
            with atomic_folder(tmp_path / "split", "split"):
                pass
        assert folder.is_dir()
        other.kill()
    with atomic_folder(tmp_path / "split", "split") as own:  # what it left goes
        assert own.is_dir() and not folder.exists()
