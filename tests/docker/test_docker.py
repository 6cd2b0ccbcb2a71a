"""What the Dockerfiles install, and the script that carries one out by chroot: all that shows without root.

`sudo python3 docker/try_in_chroot.py` itself downloads gigabytes; docs/launch.md says what it gave.
"""

from __future__ import annotations

import configparser
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.doctor import TESTED_SETS, judge

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ["Dockerfile", "Dockerfile.cpu"]


@pytest.fixture(scope="module")
def chroot():
    spec = importlib.util.spec_from_file_location("try_in_chroot", DOCKER / "try_in_chroot.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["try_in_chroot"] = module
    spec.loader.exec_module(module)
    return module


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines):
    """{name: version} of NAME==VERSION lines."""
    return {
        normal(name): version for name, _, version in (line.strip().partition("==") for line in lines if line)
    }


@pytest.fixture(scope="module")
def setup():
    """(requirements of all installations, {extra: its requirements}, constraints) as {name: version}."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = {name: pins(text.split("\n")) for name, text in parser["options.extras_require"].items()}
    base = pins(parser["options"]["install_requires"].split("\n"))
    return base, extras, pins((ROOT / "constraints.txt").read_text().splitlines())


def runs(chroot, name):
    """The simple commands of all RUN lines, as lists of words."""
    found = chroot.parse((DOCKER / name).read_text())
    return [shlex.split(part) for one in found if one.name == "RUN" for part in re.split(r"&&|;", one.text)]


# ---- what is installed


@pytest.mark.parametrize("name", FILES)
def test_everything_installed_is_pinned(chroot, setup, name):
    base, extras, constraints = setup
    installed = {}
    constrained = constraints
    for words in runs(chroot, name):
        if words[0] == "grep":
            out = re.compile(words[words.index("-E") + 1])
            lines = (ROOT / "constraints.txt").read_text().splitlines()
            constrained = pins([line for line in lines if not out.match(line)])
        if words[:2] != ["pip", "install"]:
            continue
        for word in words[2:]:
            if word.startswith(".["):
                assert words[2] == "-c"
                installed |= base
                for extra in word[2:-1].split(","):
                    installed |= extras[extra]
            elif re.fullmatch(r"[\w-]+", word) and not word.startswith("-"):
                assert words[2] == "-c", f"{word} has no pin"
                installed[normal(word)] = constrained[normal(word)]
    for package, version in installed.items():
        assert version, package
        assert constrained.get(package, version) == version, f"{package}: pip would find no version"
    trio = [installed.get(n) for n in ("torch", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchrec")]
    assert judge(*trio) == []  # a set that `dlrrec doctor` calls tested
    device = next(s[3] for s in TESTED_SETS if installed["torch"].startswith(s[0]))
    assert device == ("CPU" if name == "Dockerfile.cpu" else "CUDA 13")
    assert {"torchmetrics", "ray"} <= set(installed)


def test_the_cpu_image_holds_what_make_installs(chroot, setup):
    makefile = (ROOT / "Makefile").read_text()
    _, _, constraints = setup
    assert f"TORCHREC := torchrec=={constraints['torchrec']}\n" in makefile
    made = next(line for line in makefile.splitlines() if "'.[cpu,test]'" in line)
    assert "-c constraints.txt" in made
    commands = [" ".join(words) for words in runs(chroot, "Dockerfile.cpu")]
    assert "pip install -c constraints.txt .[cpu,ray]" in commands
    assert "pip install -c constraints.txt --no-deps torchrec" in commands


@pytest.mark.parametrize("name", FILES)
def test_an_image_holds_every_package_of_the_project_and_little_else(chroot, name):
    found = chroot.parse((DOCKER / name).read_text())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    packages = parser["options.packages.find"]["include"].replace("*", "").split()
    patterns = [p for p in (ROOT / ".dockerignore").read_text().splitlines() if p and not p.startswith("#")]
    copied = set()
    for one in found:
        if one.name == "COPY" and "from" not in one.flags:
            for source in one.words()[:-1]:
                assert (ROOT / source).exists() and not chroot.ignored(source, patterns), source
                copied.add(source)
    assert set(packages) <= copied and "tests" not in copied and "." not in copied
    at = [n for n, one in enumerate(found) if one.name == "FROM"]
    last = {one.name: one for one in found[at[-1] :]}
    assert last["USER"].text == "dlrrec" and chroot.last(found, "ENTRYPOINT") == ["dlrrec-entrypoint"]
    assert chroot.last(found, "HEALTHCHECK") == ["dlrrec", "doctor"]
    for one in found:  # a base that stays the same, a layer without lists of packages
        if one.name == "FROM":
            assert re.search(r"-\d{8}", one.text), one.text
        if "apt-get install" in one.text:
            assert "--no-install-recommends" in one.text and "rm -rf /var/lib/apt/lists/*" in one.text
    assert all(one.name != "USER" or n > at[-1] for n, one in enumerate(found))


# ---- the entry point


def test_the_entry_point_tells_commands_from_programs(tmp_path):
    from torchx.runner import get_runner

    from launch import components

    for program in ("dlrrec", "bash", "python"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)

    def said(*words):
        call = ["/bin/sh", str(DOCKER / "entrypoint.sh"), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)})
        return done.stdout.split()

    commands = next(a for a in build_parser()._actions if a.choices and "train" in a.choices).choices
    for command in commands:
        assert said(command, "--x") == ["dlrrec", command, "--x"]
    assert said() == ["dlrrec"] and said("--help") == ["dlrrec", "--help"]
    made = [components.train(), components.evaluate(), components.extract()]
    made += [components.swing("items", "--input", "a", "--output", "b")]
    with get_runner() as runner:
        for app in made:
            (container,) = runner.dryrun(app, "local_docker", {}).request.containers
            assert said(*container.command[:1]) == container.command[:1]


# ---- the script


def test_every_instruction_is_understood(chroot):
    found = chroot.parse((DOCKER / "Dockerfile.cpu").read_text())
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (DOCKER / "Dockerfile.cpu").read_text()))
    assert [one.name for one in found] == [line.split()[0] for line in text.splitlines() if line.strip()]
    assert chroot.codename(found) == "bookworm"
    done = subprocess.run(
        [sys.executable, str(DOCKER / "try_in_chroot.py"), "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == len(found)


BASE = "FROM debian:bookworm-20250101-slim AS build\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE + "RUN true\nADD https://x.example/y /y", "line 3: ADD is not carried out"),
        (BASE + "VOLUME /data", "line 2: VOLUME"),
        (BASE + 'SHELL ["bash", "-c"]', "line 2: SHELL"),
        (BASE + "RUN --mount=type=cache,target=/x pip", "line 2: RUN --mount"),
        (BASE + "COPY --link a b", "line 2: COPY --link"),
        (BASE + 'RUN ["true"]', "line 2: RUN in the form of a list"),
        (BASE + "RUN <<END\ntrue\nEND", "line 2: RUN in the form"),
        (BASE + "RUN a \\\n", "line 2: the last line goes on"),
        ("RUN true", "first instruction must be FROM"),
        ("", "first instruction must be FROM"),
        ("FROM debian:bookworm-slim", "line 1: FROM must be debian"),
        ("FROM ubuntu:24.04", "line 1: FROM must be debian"),
        (BASE + "FROM debian:trixie-20250101-slim", "several Debians: bookworm, trixie"),
    ],
)
def test_what_is_not_understood_is_refused_before_anything_is_done(chroot, text, words):
    with pytest.raises(chroot.Refused, match=re.escape(words)):
        chroot.codename(chroot.parse(text))


def test_lines_go_on_and_flags_are_told_from_words(chroot):
    text = (
        BASE + "# note\nRUN a \\\n  # a comment within\n  && b --c=d\n\ncopy --from=build --chown=u:g a b /c/"
    )
    _, run, copy = chroot.parse(text)
    assert (run.line, " ".join(run.text.split()), run.flags) == (3, "a && b --c=d", {})
    assert (copy.name, copy.flags) == ("COPY", {"from": "build", "chown": "u:g"})
    assert copy.words() == ["a", "b", "/c/"] and copy.line == 7


def test_variables_folders_and_what_is_left_out(chroot, tmp_path):
    image = chroot.Image(tmp_path, None)
    lines = (
        "ENV A=1 PATH=/x:$PATH\nARG B=${A}2\nARG PIP_EXTRA_INDEX_URL=https://x.example\nWORKDIR /w\nWORKDIR v"
    )
    for one in chroot.parse(BASE + lines)[1:]:
        image.carry_out(one, {})
    assert image.values == {"A": "1", "B": "12", "PATH": f"/x:{chroot.PATH}"}
    assert image.folder == "/w/v" and (tmp_path / "w" / "v").is_dir()
    patterns = [".venv", "**/__pycache__", "*.egg-info", "slurm-*.out"]
    for path in (".venv/bin/x", "a/b/__pycache__/c.pyc", "__pycache__/c", "x.egg-info/y", "slurm-1-t.out"):
        assert chroot.ignored(path, patterns), path
    for path in ("a/.venv", "a/x.egg-info", "swing/job.py", "venv"):
        assert not chroot.ignored(path, patterns), path


def test_debian_sources_of_both_forms(chroot, tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb http://updates.example/debian bookworm-updates main\n"
        "deb [arch=amd64] http://one.example/debian bookworm main contrib\n"
        "deb http://other.example/sdk sdk-bookworm main\n"
        "deb-src http://src.example/debian bookworm main\n"
    )
    kept, mirror = chroot.debian_sources(tmp_path, "bookworm")
    assert mirror == "http://one.example/debian"
    assert [line.split("//")[1][:3] for line in kept["sources.list"].splitlines()] == ["upd", "one"]
    (tmp_path / "sources.list").unlink()
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "Types: deb\n# note\nURIs: http://two.example/debian\nSuites: bookworm bookworm-updates\n"
        "\nTypes: deb\nURIs: http://node.example\nSuites: nodistro\nComponents: main\n"
    )
    kept, mirror = chroot.debian_sources(tmp_path, "bookworm")
    assert mirror == "http://two.example/debian" and "node" not in kept["sources.list.d/a.sources"]
    assert chroot.debian_sources(tmp_path, "trixie") == ({}, "")


def test_copies_between_the_project_and_stages(chroot, tmp_path, monkeypatch):
    """The files of COPY and where they go; the owner is set by chroot, which is left out here."""
    told = []
    monkeypatch.setattr(chroot.subprocess, "run", lambda words, **_: told.append(words))
    image = chroot.Image(tmp_path / "root", None)
    other = tmp_path / "other"
    (other / "opt" / "a").mkdir(parents=True)
    (other / "opt" / "a" / "x").write_text("x")
    lines = "WORKDIR /src\nCOPY setup.cfg README.md ./\nCOPY swing swing\nCOPY --from=b /opt/a /opt/c\n"
    lines += "COPY --chmod=755 --chown=u:g docker/entrypoint.sh /bin/e"
    for one in chroot.parse(BASE + lines)[1:]:
        image.carry_out(one, {"b": other})
    root = tmp_path / "root"
    assert (root / "src" / "setup.cfg").read_text() == (ROOT / "setup.cfg").read_text()
    assert (root / "src" / "README.md").exists() and (root / "opt" / "c" / "x").read_text() == "x"
    assert (root / "src" / "swing" / "job.py").exists() and not list(root.rglob("__pycache__"))
    assert ["chroot", str(root), "chown", "-R", "u:g", "/bin/e"] in told
    assert ["chroot", str(root), "chmod", "755", "/bin/e"] in told
    for line in ("COPY nowhere /x", "COPY --from=nobody /x /y"):
        (one,) = chroot.parse(BASE + line)[1:]
        with pytest.raises(chroot.Refused, match="line 2: COPY"):
            image.carry_out(one, {"b": other})
