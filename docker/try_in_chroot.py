#!/usr/bin/env python3
"""Carries out docker/Dockerfile.cpu without a container engine, then runs the demo as an image would.

    sudo python3 docker/try_in_chroot.py
    python3 docker/try_in_chroot.py --list

Each stage begins with a clean Debian by `debootstrap`. RUN, COPY, ENV, ARG, WORKDIR and USER are taken from
the Dockerfile and done in it by chroot, in a mount namespace that goes with the command. Then its ENTRYPOINT
runs `run --config configs/demo.yaml` and its HEALTHCHECK as its USER. An instruction that this does not know
stops it before anything is done. Debian's mirror and pip's settings are the host's; an ARG that names a
package index is then left out. Needs root, Debian's debootstrap and about 10 GB; standard library only.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {"FROM", "RUN", "COPY", "ENV", "ARG", "WORKDIR", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
FLAGS = {
    "COPY": {"from", "chown", "chmod"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"},
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Mounts of one command; they are gone when its mount namespace is.
MOUNTS = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
for path; do
  [ "$path" = -- ] && break
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro "$root$path"
  shift
done
shift
exec "$@"
"""


class Refused(Exception):
    """The Dockerfile, the host or a step is not as it must be; the message says what to do."""


@dataclass
class Instruction:
    """One instruction: its name, its `--flag=value` pairs, the rest of its text and the line it begins on."""

    name: str
    flags: dict[str, str]
    text: str
    line: int

    def words(self) -> list[str]:
        """The words of the text: a JSON list as it is, anything else as a shell would split it."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Raises Refused for any that `Image` would not carry out."""
    found: list[Instruction] = []
    start, gathered = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not gathered):
            continue
        start = start if gathered else number
        gathered += line.rstrip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        name, _, rest = gathered.strip().partition(" ")
        flags = {}
        while match := re.match(r"\s*--([\w-]+)(?:=(\S+))?\s", rest):
            flags[match[1]] = match[2] or ""
            rest = rest[match.end() :]
        found.append(Instruction(name.upper(), flags, rest.strip(), start))
        gathered = ""
    if gathered:
        raise Refused(f"line {start}: the last line goes on, but the file ends")
    for one in found:
        unknown = set(one.flags) - FLAGS.get(one.name, set())
        if one.name not in KNOWN or unknown:
            what = ", ".join(f"{one.name} --{flag}" for flag in sorted(unknown)) or one.name
            raise Refused(
                f"line {one.line}: {what} is not carried out by this script: teach it, or leave it out"
            )
        if one.name == "RUN" and (one.text.startswith("[") or "<<" in one.text):
            raise Refused(f"line {one.line}: RUN in the form of a list or with <<: write a shell command")
    if not found or found[0].name != "FROM":
        raise Refused("the first instruction must be FROM")
    return found


def codename(found: list[Instruction]) -> str:
    """The Debian of all stages, such as bookworm. Raises Refused for a base that debootstrap cannot make."""
    names = set()
    for one in found:
        if one.name == "FROM":
            base = re.fullmatch(r"debian:(\w+)-\d{8}-slim( AS \w+)?", one.text)
            if not base:
                raise Refused(
                    f"line {one.line}: FROM must be debian:CODENAME-DATE-slim [AS NAME] for debootstrap"
                )
            names.add(base[1])
    if len(names) > 1:
        raise Refused(f"stages of several Debians: {', '.join(sorted(names))}")
    return names.pop()


def expand(text: str, values: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` by the stage's values, '' for one that has none."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: values.get(m[1] or m[2], ""), text)


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: a pattern matches it or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for pattern in patterns:
        names = (
            parts if pattern.startswith("**/") else [n for n in above if n.count("/") == pattern.count("/")]
        )
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            return True
    return False


def debian_sources(folder: Path, codename: str) -> tuple[dict[str, str], str]:
    """({file below `folder`: its entries for Debian's `codename`}, address of the main one or '')."""
    kept: dict[str, str] = {}
    mirror = ""
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        text = path.read_text() if path.is_file() else ""
        for entry in text.split("\n\n") if path.suffix == ".sources" else text.splitlines():
            if path.suffix == ".sources":
                fields = dict(re.findall(r"(?m)^(\w[\w-]*):\s*(.*)$", entry))
                address, suites = fields.get("URIs", "").split(), fields.get("Suites", "").split()
            else:
                match = re.match(r"deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s", entry + " ")
                address, suites = ([match[1]], [match[2]]) if match else ([], [])
            known = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}-backports"}
            if not suites or set(suites) - known:
                continue
            name = str(path.relative_to(folder))
            kept[name] = kept.get(name, "") + entry.strip() + ("\n\n" if path.suffix == ".sources" else "\n")
            if codename in suites and not mirror:
                mirror = address[0]
    return kept, mirror


@dataclass
class Host:
    """What the chroots take from this machine: Debian's mirror, and pip's settings with what they name."""

    codename: str
    sources: dict[str, str]
    mirror: str
    pip: dict[str, str]
    folders: list[str] = field(default_factory=list)  # read-only in the roots, under the same path
    files: dict[str, str] = field(default_factory=dict)  # path in the roots -> here

    @classmethod
    def read(cls, codename: str) -> Host:
        sources, mirror = debian_sources(Path("/etc/apt"), codename)
        if not mirror:
            raise Refused(f"no source of Debian's {codename} in /etc/apt: add one, and run apt-get update")
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
        )
        host = cls(codename, sources, mirror, {})
        for line in listed.stdout.splitlines():
            section, _, pair = line.partition(".")
            key, _, value = pair.partition("=")
            if section in ("global", "install", ":env:"):
                host.pip[key] = " ".join(host._share(word) for word in value.strip("'\"").split())
        host.folders = sorted(set(host.folders))
        return host

    def _share(self, word: str) -> str:
        """A word of pip's settings as it is in the roots, where what it names must be too."""
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.is_file():
            self.files[f"/etc/host-{path.name}"] = str(path)
            return f"/etc/host-{path.name}"
        if path.is_absolute() and path.is_dir():  # an index may keep its files beside it
            self.folders.append(str(path.parent if word.startswith("file://") else path))
        return word


@dataclass
class Image:
    """A root that grows by instructions."""

    root: Path
    host: Host
    values: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "root"
    folder: str = "/"

    def run(self, words: list[str], **options) -> subprocess.CompletedProcess:
        """A program in the root, as its user, in its folder, with its variables and no others."""
        entries = [line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()]
        known = {entry[0]: (entry[2], entry[3], entry[5]) for entry in entries}
        if self.user not in known:
            raise Refused(f"USER {self.user}: there is no such user in the image")
        uid, gid, home = known[self.user]
        for path in self.host.folders:
            Path(f"{self.root}{path}").mkdir(parents=True, exist_ok=True)
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        shutil.copy("/etc/hosts", self.root / "etc/hosts")
        variables = [f"{k}={v}" for k, v in ({"HOME": home} | self.values).items()]
        inside = ["env", "-i", *variables, "sh", "-c", 'cd "$0" && exec "$@"', self.folder, *words]
        chroot = ["chroot", f"--userspec={uid}:{gid}", f"--groups={gid}", str(self.root), *inside]
        call = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        call += ["sh", "-c", MOUNTS, "sh", str(self.root), *self.host.folders, "--", *chroot]
        return subprocess.run(call, stdin=subprocess.DEVNULL, **options)

    def place(self, path: str) -> Path:
        """A path of the image on this machine."""
        return Path(f"{self.root}{os.path.normpath(os.path.join(self.folder, path))}")

    def copy(self, one: Instruction, roots: dict[str, Path]) -> None:
        """COPY: from the project (less what .dockerignore names) or from another stage."""
        *sources, target = [expand(word, self.values) for word in one.words()]
        other = one.flags.get("from")
        if other is not None and other not in roots:
            raise Refused(f"line {one.line}: COPY --from={other}: no such stage before it")
        base = ROOT if other is None else roots[other]
        patterns = (
            [] if other else [p for p in (ROOT / ".dockerignore").read_text().split("\n") if p[:1] not in "#"]
        )
        destination = self.place(target)
        for source in sources:
            origin = base / source.lstrip("/")
            if not origin.exists():
                raise Refused(f"line {one.line}: COPY {source}: there is no such file")
            many = len(sources) > 1 or target.endswith("/")
            into = destination / origin.name if origin.is_file() and many else destination
            into.parent.mkdir(parents=True, exist_ok=True)

            def left_out(folder: str, names: list[str]) -> set[str]:
                here = os.path.relpath(folder, base)
                return {n for n in names if ignored(os.path.normpath(f"{here}/{n}"), patterns)}  # noqa: B023

            if origin.is_dir():
                shutil.copytree(origin, into, symlinks=True, ignore=left_out, dirs_exist_ok=True)
            else:
                shutil.copy2(origin, into)
            inside = f"/{into.relative_to(self.root)}"
            if other is None:
                owner = one.flags.get("chown", "root:root")
                subprocess.run(["chroot", str(self.root), "chown", "-R", owner, inside], check=True)
            if "chmod" in one.flags:
                subprocess.run(["chroot", str(self.root), "chmod", one.flags["chmod"], inside], check=True)

    def carry_out(self, one: Instruction, roots: dict[str, Path]) -> None:
        """Do one instruction. Raises Refused if it fails."""
        if one.name == "RUN":
            code = self.run(["sh", "-c", one.text]).returncode
            if code:
                raise Refused(f"line {one.line}: RUN ended with exit status {code}: {one.text}")
        elif one.name == "COPY":
            self.copy(one, roots)
        elif one.name in ("ENV", "ARG"):
            for pair in one.words():
                name, _, value = pair.partition("=")
                if one.name == "ENV" or not name.endswith("INDEX_URL"):
                    self.values[name] = expand(value, self.values)
        elif one.name == "WORKDIR":
            self.folder = os.path.normpath(os.path.join(self.folder, expand(one.text, self.values)))
            self.place(".").mkdir(parents=True, exist_ok=True)
        elif one.name == "USER":
            self.user = one.text


def mebibytes(folder: Path) -> int:
    """What a folder takes on the disk."""
    done = subprocess.run(["du", "-sxm", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def new_root(root: Path, host: Host, made: list[Path]) -> None:
    """A clean Debian with the host's settings of apt and pip: the first by debootstrap, others by a copy."""
    if made:
        subprocess.run(["cp", "-a", str(made[0]), str(root)], check=True)
        return
    command = ["debootstrap", "--variant=minbase", host.codename, str(root), host.mirror]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Refused("debootstrap failed:\n" + done.stdout[-2000:])
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for name, text in host.sources.items():
        (root / "etc/apt" / name).write_text(text)
    for inside, path in host.files.items():
        shutil.copy(path, f"{root}{inside}")
    settings = "".join(f"{key} = {value}\n" for key, value in host.pip.items())
    (root / "etc/pip.conf").write_text("[global]\n" + settings)
    subprocess.run(["cp", "-a", str(root), f"{root}.clean"], check=True)
    made.append(Path(f"{root}.clean"))


def build(found: list[Instruction], host: Host, folder: Path) -> Image:
    """Carry out all stages below `folder`; returns the last one. Prints seconds and MiB of each step."""
    image, roots, clean, size = None, {}, [], 0
    for one in found:
        begin = time.monotonic()
        print(f"\n== line {one.line}: {one.name} {one.text}", flush=True)
        if one.name == "FROM":
            name = one.text.partition(" AS ")[2] or f"stage{len(roots)}"
            roots[name] = folder / name
            new_root(roots[name], host, clean)
            image = Image(roots[name], host)
            size = 0
        else:
            image.carry_out(one, roots)
        if one.name in ("FROM", "RUN", "COPY"):
            now = mebibytes(image.root)
            print(f"-- {time.monotonic() - begin:.1f} s, {now - size:+,} MiB, {now:,} MiB in all", flush=True)
            size = now
    return image


def last(found: list[Instruction], name: str) -> list[str]:
    """The words of the last ENTRYPOINT or HEALTHCHECK, the one in force. Raises Refused without one."""
    text = next((one.text for one in reversed(found) if one.name == name), "").removeprefix("CMD ")
    if not text.startswith("["):
        raise Refused(f"{name}: one is needed, with its words as a list")
    return json.loads(text)


def try_image(image: Image, found: list[Instruction]) -> None:
    """Start the image as an engine would: the demo, then the health check. Raises Refused if one fails."""
    entry = last(found, "ENTRYPOINT")
    if image.user == "root":
        raise Refused("the image would run as root: name a USER")
    if not image.run(["sh", "-c", "test -w /opt || test -w /usr"]).returncode:
        raise Refused(f"USER {image.user} may write to the programs")
    for words in ([*entry, "run", "--config", "configs/demo.yaml"], last(found, "HEALTHCHECK")):
        print(f"\n== as {image.user} in {image.folder}: {shlex.join(words)}", flush=True)
        begin = time.monotonic()
        code = image.run(words).returncode
        print(f"-- {time.monotonic() - begin:.1f} s, exit status {code}", flush=True)
        if code:
            raise Refused(f"{shlex.join(words)} ended with exit status {code}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file", type=Path, default=ROOT / "docker" / "Dockerfile.cpu", help="the Dockerfile"
    )
    parser.add_argument("--list", action="store_true", help="print the instructions and do nothing")
    parser.add_argument("--folder", type=Path, help="where the roots are made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the roots there at the end")
    given = parser.parse_args(argv)
    folder = None
    try:
        found = parse(given.file.read_text(encoding="utf-8"))
        suite = codename(found)
        if given.list:
            for one in found:
                flags = [f"--{key}={value}" for key, value in one.flags.items()]
                print(f"{one.line:4}", one.name, *flags, one.text)
            return 0
        if os.geteuid():
            raise Refused("needs root, for chroot and mounts: sudo python3 docker/try_in_chroot.py")
        if not shutil.which("debootstrap"):
            raise Refused("debootstrap is not here: apt-get install debootstrap")
        host = Host.read(suite)
        if given.folder:
            given.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="dlrrec-chroot-", dir=given.folder))
        begin = time.monotonic()
        image = build(found, host, folder)
        took = time.monotonic() - begin
        try_image(image, found)
        print(f"\nbuilt in {took:.0f} s; the image's root is {mebibytes(image.root):,} MiB")
    except Refused as error:
        print(f"try_in_chroot: {error}", file=sys.stderr)
        return 1
    finally:
        if folder and given.keep:
            print(f"kept: {folder}")
        elif folder:  # no mount is left: each was its command's own
            subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
