"""The shape of the code base, read from its syntax trees: imports point down, files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("dlrrec_torchrec", "swing", "launch") for p in (ROOT / top).rglob("*.py"))
# A module may import from lower levels and, inside its own package, from its own level.
LEVELS = [
    {"packed"},
    {"schema"},
    {"config", "features", "paths"},
    {"ingest", "split", "extract", "prepare", "neighbors", "data", "models", "metrics"},
    {"optimizers", "selection", "history", "quiet", "lockstep", "signals", "terminal"},
    {"planning", "steps"},
    {"parallel"},
    {"checkpoint", "content", "inputs", "trainer", "probe"},
    {"observe"},
    {"train"},
    {"baselines", "figures"},
    {"evaluate", "recommend", "export", "report"},
    {"experiments", "benchmarks"},
    {"pipeline", "doctor"},
    {"cli"},
    {"__main__"},
]
NO_POLARS = {
    "packed",
    "data",
    "models",
    "metrics",
    "optimizers",
    "selection",
    "steps",
    "history",
    "quiet",
    "terminal",
}
NO_POLARS |= {"benchmarks", "lockstep", "signals", "planning", "parallel", "checkpoint", "trainer", "train"}
NO_POLARS |= {"baselines", "evaluate", "recommend", "figures", "report", "schema", "config", "features"}
NO_POLARS |= {"content", "inputs"}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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
    own = own_part(path)
    for module in imports(path):
        part = part_of(module)
        if part is None or own is None or part == own or part == "__version__":
            continue
        if (own, part) == ("models", "data"):
            continue  # the batch type
        assert level(part) < level(own), f"{own} imports {part}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_stay_apart(path):
    tops = {module.split(".")[0] for module in imports(path)}
    relative = path.relative_to(ROOT).parts
    if relative[0] == "swing":
        assert not tops & {"torch", "torchrec", "dlrrec_torchrec", "launch"}
    elif relative[0] == "launch":
        assert not tops & {"swing", "dlrrec_torchrec"}
    elif own_part(path) != "neighbors":
        assert "swing" not in tops
    if own_part(path) in NO_POLARS:
        assert "polars" not in tops


def test_the_check_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from dlrrec_torchrec.train import train\n    import polars as pl\n")
    found = imports(file)
    assert "dlrrec_torchrec.train" in found and "polars" in found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_its_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
