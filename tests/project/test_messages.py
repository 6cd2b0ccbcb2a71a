"""The way out that a message names works: every flag and setting is tried on the commands that print it."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest
import yaml

from dlrrec_torchrec.benchmarks import command as bench
from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.config import RunConfig, TableConfig, load_config
from dlrrec_torchrec.config.flags import run_settings
from dlrrec_torchrec.config.names import described, flag_name, sections
from dlrrec_torchrec.stages import STAGES

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "dlrrec_torchrec").rglob("*.py")
}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
SETTING = re.compile(
    rf"(?<![\w.])(?:{'|'.join(sections())})\.(?!py\b|json|png|safetensors|jsonl)[a-z_]+(?:\.[a-z_{{}}]+)*(?:=[\w]+)?"
)
# Flags of other programs, with the word that must come before them.
FOREIGN = {"--no-deps": "pip", "--force-reinstall": "pip", "--nproc_per_node": "torchrun"}
# Messages that fewer commands can print than reach their file.
PRINTED_BY = {
    # A plan is given by flags; a training's ranks and device come from elsewhere, and were checked.
    ("sharding.planner", "--world-size"): {"plan"},
    ("sharding.planner", "--local-world-size"): {"plan"},
    ("sharding.planner", "--batch-size"): {"plan"},
    ("sharding.planner", "--table"): {"plan"},
    ("sharding.planner", "--config"): {"plan"},
    ("sharding.devices", "--device"): {"plan"},
    ("sharding.devices", "--hbm"): {"plan"},
    ("sharding.devices", "--ddr"): {"plan"},
    ("sharding.advice", "--world-size"): {"plan"},  # plan_tables writes "N ranks" instead
    # Only these ask for a device by name; the others take what there is.
    ("distributed.ranks", "--device"): {"train", "tune", "run", "bench"},
    ("models.compiled", "--compile"): {"train", "tune", "run", "bench"},  # only these compile
    ("store.paths", "--variant"): {
        "train",
        "recommend",
        "tune",
    },  # names in a configuration are checked before
    ("cli", "--seed-number"): {*STAGES, "recommend"} - {"ingest", "report"},  # requested by this same flag
    ("experiments.command", "--seed-number"): {"audit", "tune"},
    ("experiments.ablations", "--data"): {"experiment"},
}
# Programs of their own, with parsers of their own.
APART = {"benchmarks.gpu"}


@functools.cache
def messages(module: str) -> list[str]:
    """The strings of a module that may be printed: all except docstrings and the names given to argparse.

    What an f-string fills in is "{}".
    """
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            skipped.add(id(node.body[0].value))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add_argument", "add_parser"):
            skipped |= {id(argument) for argument in node.args}
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    texts = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@functools.cache
def imports(module: str, lazily: bool = True) -> frozenset[str]:
    """Modules of the package that a module imports, at its top or (lazily) inside functions."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else tree.body
    modules = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return frozenset(modules & FILES.keys())


def reached(start: set[str], lazily: bool = True) -> set[str]:
    seen, new = set(), start
    while new:
        seen |= new
        new = {m for module in new for m in imports(module, lazily)} - seen
    return seen


def imported_by(*functions) -> set[str]:
    """What is imported inside of functions."""
    text = "\n".join(inspect.getsource(function) for function in functions if function)
    return set(re.findall(r"from (dlrrec_torchrec[\w.]*) import", text)) & FILES.keys()


@functools.cache
def printers() -> dict[str, set[str]]:
    """Module -> the commands that can print its messages."""
    from dlrrec_torchrec import cli
    from dlrrec_torchrec.experiments import command as experiments
    from dlrrec_torchrec.experiments import experiment
    from dlrrec_torchrec.extract import command as content
    from dlrrec_torchrec.extract.providers.registry import PROVIDERS
    from dlrrec_torchrec.sharding import command as plan

    groups = {
        f"dlrrec_torchrec.{part}.command" for part in ("benchmarks", "sharding", "experiments", "extract")
    } | {"dlrrec_torchrec.experiments.experiment"}
    always = reached({"dlrrec_torchrec.cli"}, lazily=False) - groups
    starts = {s.name: imported_by(s.action, s.check, s.shown) for s in STAGES.values()}
    starts["extract"] |= {name.partition(":")[0] for name in PROVIDERS.values()}  # imported by name
    starts["recommend"] = imported_by(cli._recommend)
    starts["run"] = set().union(*starts.values())
    starts["extract"] |= {"dlrrec_torchrec.extract.command"}
    starts["cache"] = imported_by(content._stats, content._export, content._prune)
    starts["plan"] = imported_by(plan._plan) | {"dlrrec_torchrec.sharding.command"}
    starts["audit"] = imported_by(experiments._leakage)
    starts["tune"] = imported_by(experiments._tune)
    starts["experiment"] = starts["run"] | imported_by(experiment._experiment, experiment._in_folder)
    starts["experiment"] |= {"dlrrec_torchrec.experiments.leakage_experiment"}  # named in a table
    reach = {name: reached(start) | always for name, start in starts.items()}
    reach["cache"].add("dlrrec_torchrec.extract.command")
    reach["experiment"].add("dlrrec_torchrec.experiments.experiment")
    for name in ("audit", "tune"):
        reach[name].add("dlrrec_torchrec.experiments.command")
    reach["bench"] = reached(imported_by(bench)) | {"dlrrec_torchrec.benchmarks.command"}
    reach["doctor"] = reached(imported_by(cli._doctor))
    return {module: {name for name, modules in reach.items() if module in modules} for module in FILES}


@functools.cache
def actions(command: str) -> list[dict]:
    """Flag -> argparse's action, for the command or, of a group, for each of its commands."""
    commands = next(a for a in build_parser()._actions if a.choices and "train" in a.choices).choices
    parsers = [commands[command]]
    if command in ("bench", "audit", "cache"):
        parsers = list(next(a for a in parsers[0]._actions if a.choices).choices.values())
    if command == "extract":  # a stage with further commands
        parsers += next(a for a in parsers[0]._actions if isinstance(a.choices, dict)).choices.values()
    return [parser._option_string_actions for parser in parsers]


def accepts(command: str, flag: str) -> bool:
    return any(flag in known for known in actions(command))


def named(pattern: re.Pattern) -> list[tuple[str, str, str]]:
    """(module, message, what it names) of every message of the package."""
    return [
        (module.removeprefix("dlrrec_torchrec."), text, word)
        for module in FILES
        for text in messages(module)
        if "@media" not in text  # the report's style sheet has names of the same form
        for word in pattern.findall(text)
    ]


def test_every_flag_in_a_message_is_accepted_by_the_commands_that_print_it():
    tried, used = 0, set()
    for module, text, flag in named(FLAG):
        if module in APART:
            continue
        before = text[: text.index(flag)]
        if flag in FOREIGN:
            assert FOREIGN[flag] in before, f"{module}: {text!r} does not say whose flag {flag} is"
            continue
        commands = printers()[f"dlrrec_torchrec.{module}"]
        assert commands, f"{module}: no command reaches it"
        commands = commands - {"refit"}  # it adds to what a stage says that `dlrrec run` takes the flags
        if other := re.findall(r"dlrrec(?:_torchrec)? ([a-z]+)", before):
            commands = {other[-1]}
        elif (module, flag) in PRINTED_BY:
            commands = PRINTED_BY[module, flag]
            used.add((module, flag))
        elif module.startswith("benchmarks."):
            commands = {"bench"}
        elif not flag.startswith(("--set", "--config", "--run-dir")):
            commands = commands - {"bench"}  # a benchmark's settings are checked by its case
        else:
            commands = commands - {"bench", "doctor"}
        for command in commands:
            assert accepts(command, flag), f"{module}: {text!r}: `dlrrec {command}` refuses {flag}"
            tried += 1
    assert tried > 100 and used == PRINTED_BY.keys()


def test_every_setting_in_a_message_can_be_set():
    """After --set, which every command of a run takes, or in its file."""
    mentions = named(SETTING)
    assert len(mentions) > 60
    for module, text, word in mentions:
        setting, _, value = word.partition("=")
        keys = [key.replace("{}", "user") for key in re.sub(r"\.\{\}$", "", setting.strip(".")).split(".")]
        if keys[:2] == ["model", "tables"]:
            default = getattr(TableConfig(rows=9, dim=32, pooling=1.0), keys[3]) if len(keys) > 3 else {}
        else:
            default = functools.reduce(getattr, keys, RunConfig())
        assert load_config(
            None, {".".join(keys): default if value in ("", "N") else yaml.safe_load(value)}
        ), f"{module}: {text!r}"
    for command in ("run", *STAGES, "recommend", "plan", "audit", "tune"):
        assert accepts(command, "--set") and accepts(command, "--config")


def test_no_flag_is_put_together_where_this_test_cannot_see_it():
    for module in FILES:
        for text in messages(module):
            assert "--{}" not in text or module.startswith("dlrrec_torchrec.config."), f"{module}: {text!r}"


@pytest.mark.parametrize("section", sections())
def test_the_flag_of_a_setting_is_taken_by_run_and_by_its_own_commands(section):
    commands = ["run", *(name for name, stage in STAGES.items() if section in stage.sections)]
    assert len(commands) > 1
    for known in vars(RunConfig())[section].__dataclass_fields__:
        flag = flag_name(section, known)
        assert described(f"{section}.{known}") == f"{section}.{known} ({flag})"
        assert all(accepts(command, flag) for command in commands), flag


def test_names_that_sections_share_are_told_apart():
    words = ["run", "--split.folds", "7", "--extract.folds", "3", "--ingest.seed", "4", "--lr", "0.5"]
    config, _ = run_settings(build_parser().parse_args(words))
    assert (config.split.folds, config.extract.folds, config.ingest.seed, config.split.seed) == (7, 3, 4, 0)
    assert config.train.lr == 0.5
    for words in (["split", "--folds", "7"], ["split", "--split.folds", "7"]):
        config, _ = run_settings(build_parser().parse_args(words))
        assert (config.split.folds, config.extract.folds) == (7, load_config(None).extract.folds)
    for refused in (["run", "--folds", "7"], ["run", "--seed", "3"]):  # whose? and not --seeds
        with pytest.raises(SystemExit):
            build_parser().parse_args(refused)
