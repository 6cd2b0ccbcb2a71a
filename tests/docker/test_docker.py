"""What the Dockerfiles install and copy, how an image starts, and the script that tries one without Docker.

`sudo docker/try.sh` itself builds an image of gigabytes; docs/launch.md says what that gave.
"""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.doctor import TESTED_SETS, judge

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ["Dockerfile", "Dockerfile.cpu"]


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its name, its `--flag=value` pairs and the rest of its text."""

    name: str
    flags: dict[str, str]
    text: str


def instructions(name):
    """All instructions of a file, comments left out and continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (DOCKER / name).read_text())
    parsed = []
    for line in filter(str.strip, re.sub(r"\\\n", " ", text).splitlines()):
        keyword, flags, rest = re.fullmatch(r"([A-Z]+)((?:\s+--\S+)*)\s+(.+)", line).groups()
        parsed.append(
            Instruction(keyword, dict(flag[2:].split("=", 1) for flag in flags.split()), rest.strip())
        )
    return parsed


def last_stage(name):
    """{name: instruction} of the image itself; the last of a name is the one in force."""
    parsed = instructions(name)
    start = max(n for n, one in enumerate(parsed) if one.name == "FROM")
    return {one.name: one for one in parsed[start:]}


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


def runs(name):
    """The simple commands of all RUN lines, as lists of words."""
    lines = [one.text for one in instructions(name) if one.name == "RUN"]
    return [shlex.split(part) for text in lines for part in re.split(r"&&|;", text)]


# ---- what is installed


@pytest.mark.parametrize("name", FILES)
def test_everything_installed_is_pinned(setup, name):
    base, extras, constraints = setup
    installed = {}
    constrained = constraints
    for words in runs(name):
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


def test_the_cpu_image_holds_what_make_installs(setup):
    makefile = (ROOT / "Makefile").read_text()
    _, _, constraints = setup
    assert f"TORCHREC := torchrec=={constraints['torchrec']}\n" in makefile
    made = next(line for line in makefile.splitlines() if "'.[cpu,test]'" in line)
    assert "-c constraints.txt" in made
    commands = [" ".join(words) for words in runs("Dockerfile.cpu")]
    assert "pip install -c constraints.txt .[cpu,ray]" in commands
    assert "pip install -c constraints.txt --no-deps torchrec" in commands


@pytest.mark.parametrize("name", FILES)
def test_an_image_holds_every_package_of_the_project_and_little_else(name):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    packages = parser["options.packages.find"]["include"].replace("*", "").split()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = set()
    for one in instructions(name):
        if one.name == "COPY" and "from" not in one.flags:
            for source in shlex.split(one.text)[:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch.fnmatch(source.split("/")[0], pattern) for pattern in ignored), source
                copied.add(source)
    assert set(packages) <= copied and "tests" not in copied and "." not in copied


@pytest.mark.parametrize("name", FILES)
def test_an_image_starts_as_a_user_and_keeps_no_lists_and_no_secrets(name):
    end = last_stage(name)
    assert end["USER"].text == "dlrrec"
    assert json.loads(end["ENTRYPOINT"].text) == ["dlrrec-entrypoint"]
    assert json.loads(end["HEALTHCHECK"].text.removeprefix("CMD ")) == ["dlrrec", "doctor"]
    for one in instructions(name):
        if one.name == "FROM":  # a base that stays the same
            assert re.search(r"-\d{8}", one.text), one.text
        if one.name in ("ENV", "ARG", "RUN"):
            assert not re.search(r"(?i)token|secret|passw|credential|api_?key|//[^/\s]*@", one.text), one.text
        if "apt-get install" in one.text:
            assert "--no-install-recommends" in one.text and "rm -rf /var/lib/apt/lists/*" in one.text


# ---- the entry point


def test_the_entry_point_tells_commands_from_programs(tmp_path):
    from torchx.runner import get_runner

    from launch import components

    for program in ("dlrrec", "bash", "python"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)

    def started(*words):
        call = ["/bin/sh", str(DOCKER / "entrypoint.sh"), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)})
        return done.stdout.split()

    commands = next(a for a in build_parser()._actions if a.choices and "train" in a.choices).choices
    for command in commands:
        assert started(command, "--x") == ["dlrrec", command, "--x"]
    assert started() == ["dlrrec"] and started("--help") == ["dlrrec", "--help"]
    apps = [components.train(), components.evaluate(), components.extract()]
    apps += [components.swing("items", "--input", "a", "--output", "b")]
    with get_runner() as runner:
        for app in apps:
            (container,) = runner.dryrun(app, "local_docker", {}).request.containers
            assert started(*container.command[:1]) == container.command[:1]


# ---- the script that tries the CPU image

BUILDAH = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
echo "$@" >> "$LOG"
case "$1 $3" in
  build*) exit "${BUILD_STATUS:-0}" ;;
  *User*) echo "$IMAGE_USER" ;;
  *Entrypoint*) echo "dlrrec-entrypoint " ;;
  *Healthcheck*) echo "CMD dlrrec doctor " ;;
  run*) exit "${RUN_STATUS:-0}" ;;
  from*) echo "container" ;;
esac
"""


@pytest.mark.parametrize(
    ("changed", "status", "programs_run"),
    [
        ({}, 0, ["dlrrec-entrypoint run --config configs/demo.yaml", "dlrrec doctor"]),
        ({"BUILD_STATUS": "7"}, 7, []),
        ({"IMAGE_USER": "root"}, 1, []),
        ({"IMAGE_USER": ""}, 1, []),
        ({"RUN_STATUS": "3"}, 3, ["dlrrec-entrypoint run --config configs/demo.yaml"]),
    ],
)
def test_the_script_runs_what_it_built_and_leaves_nothing(tmp_path, changed, status, programs_run):
    """With programs that only note how they were called, since the real ones need root and gigabytes."""
    programs, left = tmp_path / "bin", tmp_path / "left"
    left.mkdir()
    programs.mkdir()
    fakes = {"buildah": BUILDAH, "id": "#!/bin/sh\necho 0\n", "debootstrap": '#!/bin/sh\nmkdir "$3"\n'}
    for program, text in fakes.items():
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    log = tmp_path / "log"
    env = {"PATH": f"{programs}:/usr/bin:/bin", "TMPDIR": str(left), "LOG": str(log), "IMAGE_USER": "dlrrec"}
    done = subprocess.run([DOCKER / "try.sh", "--volume", "a b:/c"], env=env | changed, capture_output=True)
    assert done.returncode == status, done.stderr
    calls = log.read_text().splitlines()
    (build,) = (call for call in calls if call.startswith("build "))
    assert "--volume a b:/c -f docker/Dockerfile.cpu" in build and "--pull-never" in build
    (base,) = {one.text.split()[0] for one in instructions("Dockerfile.cpu") if one.name == "FROM"}
    assert f"commit -q container docker.io/library/{base}" in calls
    run = [call.removeprefix("run container -- ") for call in calls if call.startswith("run ")]
    assert run == programs_run
    assert calls[-1] == "rm --all" and not list(left.iterdir())
