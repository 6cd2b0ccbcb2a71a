"""The shape of the code base, read from its syntax trees: imports point down, files stay short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for top in ("dlrrec_torchrec", "swing", "launch") for p in (ROOT / top).rglob("*.py"))
# A module may import from lower levels and, inside its own folder, from its own level.
LEVELS = [
    {"store", "metrics"},
    {"config", "distributed", "features", "report"},
    {"data", "ranking"},
    {"ingest", "split", "extract", "swing_stage", "prepare", "models"},
    {"sharding", "doctor"},
    {"training"},
    {"serving", "benchmarks"},
    {"evaluation"},
    {"stages"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
READS_TABLES = {"split", "ingest"}  # the only ones that import Polars
ROOT_FILES = {"cli", "doctor", "metrics", "swing_stage", "__init__", "__main__"}
SAME_NAMES = {"__init__", "stage", "command"}  # of files in several folders


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def part_of(module: str) -> str | None:
    """`dlrrec_torchrec.data.batch` -> `data`."""
    names = module.split(".")
    return names[1] if names[0] == "dlrrec_torchrec" and len(names) > 1 else None


def own_part(path: Path) -> str | None:
    relative = path.relative_to(ROOT).with_suffix("").parts
    return relative[1] if relative[0] == "dlrrec_torchrec" and relative[1] != "__init__" else None


def level(part: str) -> int:
    for number, parts in enumerate(LEVELS):
        if part in parts:
            return number
    pytest.fail(f"module '{part}' has no level in this test")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own_folder = own_part(path)
    for module in imports(path):
        part = part_of(module)
        if part is None or own_folder is None or part == own_folder or part == "__version__":
            continue
        assert level(part) < level(own_folder), f"{own_folder} imports {part}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_stay_apart(path):
    tops = {module.split(".")[0] for module in imports(path)}
    relative = path.relative_to(ROOT).parts
    if relative[0] == "swing":
        assert not tops & {"torch", "torchrec", "dlrrec_torchrec", "launch"}
    elif relative[0] == "launch":
        assert not tops & {"swing", "dlrrec_torchrec"}
    elif own_part(path) != "swing_stage":
        assert "swing" not in tops
    if relative[0] == "dlrrec_torchrec" and own_part(path) not in READS_TABLES:
        assert "polars" not in tops


def test_serving_imports_no_training():
    """Nor what writes TensorBoard's events: a service needs neither."""
    code = "import sys, dlrrec_torchrec.serving.recommend; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = process.stdout.split()
    assert not [m for m in loaded if m.startswith(("dlrrec_torchrec.training", "tensorboard", "polars"))]


def test_the_root_holds_few_files():
    assert {p.stem for p in (ROOT / "dlrrec_torchrec").glob("*.py")} == ROOT_FILES


def test_no_two_files_share_a_name():
    names = [p.stem for p in (ROOT / "dlrrec_torchrec").rglob("*.py") if p.stem not in SAME_NAMES]
    assert not {name for name in names if names.count(name) > 1}


def test_the_page_names_what_is_there():
    """docs/architecture.md: every file exists, and every folder has its line."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "dlrrec_torchrec" / name).exists(), name
    table = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|", text, re.MULTILINE)
    parts = {own_part(path) for path in FILES} - {None, "__main__"}
    assert sorted(table) == sorted(parts)
    above: set[str] = set()
    for part in table:  # a folder imports only what stands above it
        for path in FILES:
            if own_part(path) == part:
                assert {p for p in map(part_of, imports(path)) if p} <= above | {part, "__version__"}, path
        above.add(part)


def test_no_circle():
    """No folder reaches itself again by way of others."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        if own_folder := own_part(path):
            edges.setdefault(own_folder, set()).update(filter(None, map(part_of, imports(path))))
    for start in edges:
        reached, new = set(), edges[start] - {start}
        while new:
            reached |= new
            new = set().union(*(edges.get(part, set()) for part in new)) - reached
        assert start not in reached, start


def test_the_check_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from dlrrec_torchrec.training.stage import train\n    import polars as pl\n"
    )
    modules = imports(file)
    assert "dlrrec_torchrec.training.stage" in modules and "polars" in modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_its_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
