"""The README is true: its commands are run, in order, in a folder that looks like a clone."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import swing.__main__
import swing.benchmark.__main__
from dlrrec_torchrec import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *((ROOT / "docs" / f"{p}.md").read_text(encoding="utf-8") for p in ("swing", "sharding"))]
BIN = Path(sys.executable).parent
# Programs whose later commands are called in this process, which has imported what they need.
CALLED: dict[str, Callable[[list[str]], int]] = {
    "dlrrec": cli.main,
    "python -m swing": swing.__main__.main,
    "python -m swing.benchmark": swing.benchmark.__main__.main,
}
# The runs are made small; nothing else of a command is changed.
SMALL = {"epochs": 1, "patience": 0}
SMALL_BENCH = {
    "embeddings": "--rows 2000 --batch 64 --rounds 2 --copy-mib 8".split(),
    "train": "--batch 64 --steps 1 --warmup 1 --rounds 1 --users 600 --items 400".split(),
    "loader": "--rows 3000 --rounds 1".split(),
    "features": "--rows 400 800 --items 40".split(),
    "stages": "--rows 1000".split(),
    "encode": "--sentences 40 --rounds 1 --processes 2".split(),
}


def commands():
    """Every line of every bash block, without comments, and the preparation that the text names."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", "\n".join(PAGES), re.S)
        for line in block.splitlines()
        if line.strip()
    ]
    documented = [" ".join(shlex.split(line, comments=True)) for line in lines]
    prepare = next(c for c in re.findall(r"`(dlrrec [^`]+)`", README) if "--until prepare" in c)
    at = next(i for i, line in enumerate(documented) if line.startswith("torchrun"))
    return list(dict.fromkeys([*documented[:at], prepare, *documented[at:]]))  # what two pages have, once


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the configurations, made small, and the files that the commands read."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").mkdir()
    for name in ("launch", ".torchxconfig"):
        (folder / name).symlink_to(ROOT / name)
    for path in (ROOT / "configs").glob("*.yaml"):
        body = yaml.safe_load(path.read_text())
        if body["ingest"]["source"] == "synthetic":
            body["ingest"]["size"] = "tiny"
        if "seeds" in body:
            body["seeds"] = 1
        if path.name != "demo.yaml":  # one table of peers is enough
            body["evaluate"] = {"peers": False}
        body["train"] = (body.get("train") or {}) | SMALL | {"batch_size": 64}
        (folder / "configs" / path.name).write_text(yaml.safe_dump(body))
    users, items = [f"u{n}" for n in range(24)], [f"Cafe {n}" for n in range(8)]
    rows = [(u, i, 1 + (7 * a + 3 * b + a * b) % 5) for a, u in enumerate(users) for b, i in enumerate(items)]
    words = {
        1: "Awful and overpriced.",
        2: "Bad pizza.",
        3: "Fine.",
        4: "Good biryani.",
        5: "Best dosa ever!",
    }
    (folder / "reviews.csv").write_text(
        "Restaurant,Reviewer,Review,Rating,Time\n"
        + "".join(f'{i},{u},"{words[r]}",{r},5/25/2019 15:54\n' for u, i, r in rows)
    )
    (folder / "restaurants.csv").write_text(
        "Name,Cost,Cuisines\n" + "".join(f'{i},{200 + 50 * n},"Pizza, Tea"\n' for n, i in enumerate(items))
    )
    sounds = {"name": items, "embedding": [[float(n), 1.0, -2.0, 0.5] for n in range(len(items))]}
    pq.write_table(pa.table(sounds), folder / "audio.parquet")
    test = [n % 5 == 0 for n in range(len(rows))]
    for name, part in (("u1.base", False), ("u1.test", True)):
        (folder / name).write_text(
            "".join(
                f"{users.index(u) + 1}\t{items.index(i) + 1}\t{r}\t881250949\n"
                for (u, i, r), tested in zip(rows, test, strict=True)
                if tested == part
            )
        )
    genres = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)
    (folder / "u.item").write_text(
        "".join(f"{n + 1}|Film {n} (1995)|01-Jan-1995||http://x|{genres}\n" for n in range(len(items))),
        encoding="latin-1",
    )
    return folder


def call(main: Callable[[list[str]], int], words: list[str]) -> tuple[int, str]:
    """(exit status, what was printed) of a command in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            return main(words), printed.getvalue()
        except SystemExit as end:  # argparse's
            return int(end.code or 0), printed.getvalue()


def start_process(words: list[str], folder: Path) -> tuple[int, str]:
    """(exit status, what was printed) of a process in `folder`."""
    program = [sys.executable] if words[0] == "python" else [str(BIN / words[0])]
    process = subprocess.run(
        [*program, *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    return process.returncode, process.stdout + process.stderr


def test_every_command_runs(clone, monkeypatch):
    """The first command of a program is a process of its own; later ones are called here, if they can be."""
    monkeypatch.chdir(clone)
    ran, called = [], set()
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            process = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert process.returncode == 0, process.stderr
            continue
        if "recommend" in words:  # a user of the small world
            words[words.index("--user") + 1] = known_user(clone)
        if "--seeds" in words:
            words[words.index("--seeds") + 1] = "1"
        if "swing.benchmark" in words:
            # tests/swing/test_benchmark.py runs the other sections
            at = words.index("--edges")
            assert set(words[3:at]) <= set(swing.benchmark.__main__.SECTIONS)
            words[3:] = ["ray", "--edges", "0.01", "0.02", "--repeats", "1"]
        if words[0] == "torchx":  # tests/launch/test_runs.py trains two ranks with this component
            words.insert(2, "--dryrun")
        if "--minutes" in words:
            at = words.index("--minutes")
            words[at : at + 2] = ["--trials", "2"]
        if words[:2] == ["dlrrec", "experiment"]:  # tests/experiments/test_experiment.py looks at its table
            words += ["--epochs", "1", "--over-arch", "8", "1"]
        if words[:2] == ["dlrrec", "bench"]:
            words += SMALL_BENCH[words[2]]
        if "--source" in words:  # no configuration file whose training could be made small
            words += ["--epochs", "1", "--set", "train.batch_size=64"]
        start = time.monotonic()
        name = " ".join(words[: 3 if words[0] == "python" else 1])
        if name in called and CALLED.get(name):
            status, printed = call(CALLED[name], words[len(name.split()) :])
        else:
            status, printed = start_process(words, clone)
        called.add(name)
        print(f"{time.monotonic() - start:6.1f} s  {command}", flush=True)
        if words[:2] == ["dlrrec", "audit"] and "are needed to tell" in printed:
            assert status == 2  # of so small a world it says that it cannot tell
            continue
        assert status == 0, f"{command}\n{printed[-6000:]}"
        ran.append(command)
    assert len(ran) > 12
    for folder in ("demo", "two", "mine", "zomato", "movielens-100k"):
        assert (clone / "runs" / folder).is_dir(), folder


def known_user(clone):
    part = next((clone / "runs/demo/shards/entities/users").glob("part-*.parquet"))
    return pq.read_table(part, columns=["id"])["id"][0].as_py()


def test_configurations_and_files_named_exist():
    for name in re.findall(r"configs/[\w-]+\.yaml", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(dlrrec_torchrec/[\w/.]+|swing/|configs/)`", README):
        assert (ROOT / name).exists(), name
