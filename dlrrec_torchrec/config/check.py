"""Settings are checked at the door: alone and together, before the first stage begins.

Ranges are next to the fields (`option(..., least=1)`); what concerns several settings is a rule here. All
problems are collected and reported at once. What depends on data (a modality that the shards lack) is checked
where the data is read.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import typing
from collections.abc import Callable, Iterable
from typing import Any

from dlrrec_torchrec.config.extract_rules import EXTRACT_RULES
from dlrrec_torchrec.config.names import described, section_of, sections
from dlrrec_torchrec.config.read import VARYING, Report, apply_variant, field_value, raise_problems
from dlrrec_torchrec.config.reduction_rules import REDUCTION_RULES
from dlrrec_torchrec.config.sections import RunConfig
from dlrrec_torchrec.config.table_section import TableConfig
from dlrrec_torchrec.store.modality import BUILT_IN, KINDS, SIDES, side_named

Values = dict[str, Any]  # setting -> value, of the settings that are right by themselves
Rule = Callable[..., str | None]

LARGEST = 1e30  # of a setting: what is made of it must fit into torch's 32-bit numbers
_HOLDS = {"least": operator.ge, "most": operator.le, "above": operator.gt, "below": operator.lt}

# Rules, each with the settings that it takes as arguments; what it returns is reported for the first.
_RULES: list[tuple[tuple[str, ...], Rule]] = []


def check_settings(*configs: Any, protocol: str = "strict") -> None:
    """Check sections by themselves and with each other, as the functions of the stages do.

    Raises DataError naming every setting that cannot be used, and its flag.
    """
    problems: list[str] = []

    def report(setting: str, text: str) -> None:
        problems.append(f"{described(setting)}: {text}")

    _fields(RunConfig(protocol=protocol), "", report)
    _check({section_of(type(section)): section for section in configs}, report)
    raise_problems(problems)


def config_problems(
    config: RunConfig, names: Iterable[str] | None = None, variants: Iterable[str] | None = None
) -> list[str]:
    """What is wrong with the settings of a run, a line each.

    Args:
        names: the sections to check (default: all).
        variants: whose settings are checked (default: all).

    Model, contrastive, list and train sections are checked as each variant changes them, because nothing else
    is trained; what no variant changed is reported once.
    """
    names = list(sections() if names is None else names)
    problems: list[str] = []
    common = {name: getattr(config, name) for name in names if name not in VARYING}
    varying = [name for name in names if name in VARYING]

    def report(setting: str, text: str) -> None:
        problems.append(f"{described(setting)}: {text}")

    _fields(config, "", report)
    _check(common, report)
    if not config.variants:
        report("variants", "names no model to train; leave it out for the default ones")
    if not varying:
        return problems
    base: list[tuple[str, str]] = []
    _check(common | {name: getattr(config, name) for name in varying}, lambda *problem: base.append(problem))
    for name in config.variants if variants is None else variants:

        def report_variant(setting: str, text: str, at: str = f"variants.{name}") -> None:
            inherited = (setting, text) in base
            report(setting if inherited or setting.startswith(at) else f"{at}.{setting}", text)

        changed = apply_variant(config, name, report_variant)
        _check(common | {section: getattr(changed, section) for section in varying}, report_variant)
    return problems


def _check(by_name: dict[str, Any], report: Report) -> None:
    """Check sections, given by name: their fields, then every rule whose settings are right so far."""
    values: Values = {}
    for name, section in by_name.items():
        values |= _fields(section, f"{name}.", report)
    for settings, rule in _RULES:
        if all(setting in values for setting in settings):
            if text := rule(*(values[setting] for setting in settings)):
                report(settings[0], text)


def _fields(section: Any, at: str, report: Report) -> Values:
    """Check each field of a dataclass of settings; the values of those that are right."""
    hints = typing.get_type_hints(type(section))
    values: Values = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        value, setting = getattr(section, field.name), at + field.name
        problems = _field_problems(value, hints[field.name], field, setting)
        for problem in problems:
            report(*problem)
        if not problems:
            values[setting] = value
    return values


def _field_problems(value: Any, hint: Any, field: dataclasses.Field, setting: str) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []

    def report(at: str, text: str) -> None:
        problems.append((at, text))

    try:
        parsed = field_value(value, hint, field, setting, report)
    except ValueError as error:
        return [(setting, str(error))]
    if not _is_as_read(value, parsed):  # a file's 1e3 was read as a number, a caller's "1e3" is still text
        return [(setting, f"{value!r} is not of type {type(parsed).__name__}, as {parsed!r} is")]
    if text := range_problem(value, field):
        report(setting, text)
    for name, table in value.items() if isinstance(value, dict) else ():
        if isinstance(table, TableConfig):
            _fields(table, f"{setting}.{name}.", report)
    return problems


def _is_as_read(value: Any, parsed: Any) -> bool:
    """Whether a value already is what reading it from a file would make of it."""
    if isinstance(value, list) and isinstance(parsed, list):
        return all(map(_is_as_read, value, parsed))
    integer_for_float = isinstance(value, int) and isinstance(parsed, float)
    return integer_for_float or isinstance(value, type(parsed)) or isinstance(value, os.PathLike)


def range_problem(value: Any, field: dataclasses.Field) -> str | None:
    """In words, how a value (or one of a list's) breaks the bounds of its field; None where it does not."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if isinstance(number, int) and abs(number) >= 2**63:
            return f"an integer of {len(str(abs(number)))} digits does not fit into 64 bits"
        if not math.isfinite(number):
            return f"{number} is not a finite number"
        if abs(number) > LARGEST:
            return f"{number} is too large: no setting is above {LARGEST:g}"
        if not all(_HOLDS[name](number, bound) for name, bound in field.metadata["bounds"].items()):
            return f"{number} must be {range_words(field)}"
    return None


def range_words(field: dataclasses.Field) -> str:
    """The bounds of a field in words, as "at least 0 and below 1"; "" where it has none."""
    words = {"least": "at least", "above": "above", "below": "below", "most": "at most"}
    bounds = field.metadata["bounds"]
    return " and ".join(f"{text} {bounds[name]:g}" for name, text in words.items() if name in bounds)


def _rule(*settings: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        _RULES.append((settings, rule))
        return rule

    return add


@_rule("ingest.columns", "ingest.source")
@_rule("ingest.item_columns", "ingest.source")
def _columns(columns: dict, source: str) -> str | None:
    return f"is for ingest.source=table, not {source!r}" if columns and source != "table" else None


@_rule("ingest.reviews", "ingest.source")
@_rule("ingest.items", "ingest.source")
@_rule("ingest.test", "ingest.source")
def _files(file: str, source: str) -> str | None:
    if file and source == "synthetic":
        return (
            f"{file!r} is not read: the world is synthetic; name the form of the file by ingest.source "
            "(table for any file whose columns are named by ingest.columns)"
        )
    return None


@_rule("split.fold", "split.folds")
def _fold(fold: int, folds: int) -> str | None:
    return f"{fold} must be below split.folds ({folds})" if fold >= folds else None


for _names, _checked in (*EXTRACT_RULES, *REDUCTION_RULES):
    _rule(*_names)(_checked)


@_rule("swing.max_item_users")
def _sampled_partners(limit: int) -> str | None:
    return "1 partner links nothing; give 2 or more, or 0 for all" if limit == 1 else None


@_rule("prepare.dense")
def _dense(names: list) -> str | None:
    return None if names else "names no feature; the model needs at least one"


@_rule("prepare.rating_range")
def _rating_range(bounds: list | None) -> str | None:
    if bounds is not None and (len(bounds) != 2 or bounds[0] >= bounds[1]):
        return f"{bounds} is not a lowest and a highest rating, as [1, 5]"
    return None


@_rule("prepare.statistics", "extract.fold_by")
def _order(statistics: str, fold_by: str) -> str | None:
    if statistics == "ordered" and fold_by != "time":
        return "ordered needs folds that are blocks of time: set extract.fold_by=time too"
    if statistics == "folds" and fold_by == "time":
        return "folds of time (extract.fold_by=time) are for prepare.statistics=ordered"
    return None


@_rule("split.positive_rating", "prepare.rating_range")
def _positive_rating(positive: float | None, bounds: list | None) -> str | None:
    if positive is None or bounds is None:
        return None
    if len(bounds) == 2 and not bounds[0] < positive <= bounds[1]:
        return (
            f"{positive:g} leaves one label only among ratings from {bounds[0]:g} to {bounds[1]:g}; if the "
            "source has another scale, say so by prepare.rating_range"
        )
    return None


@_rule("model.text_tower")
@_rule("model.image_tower")
@_rule("model.other_tower")
@_rule("model.dense_arch")
@_rule("model.over_arch")
def _layers(sizes: list | None) -> str | None:
    return None if sizes is None or sizes else "must have at least one layer"


@_rule("model.over_arch")
def _logit(sizes: list | None) -> str | None:
    return f"{sizes} must end in 1, the logit" if sizes and sizes[-1] != 1 else None


@_rule("model.residual", "model.wide")
def _residual(sizes: list | None, wide: bool) -> str | None:
    return (
        f"{sizes} adds to the wide path: set model.wide=true, or this to []" if sizes and not wide else None
    )


def _dot(sizes: list | None, interaction: str, dim: int) -> str | None:
    if interaction != "dot" or not sizes or sizes[-1] == dim:
        return None
    return (
        f"{sizes} must end in model.embedding_dim ({dim}): model.interaction=dot needs vectors of one "
        "size; pairwise and dcn do not"
    )


_rule("model.dense_arch", "model.interaction", "model.embedding_dim")(_dot)


def _tower_rule(kind: str) -> None:
    """The tower of a kind must fit where a modality of that kind has no tower of its own.

    Without names in model.modalities the shards decide, so those that extraction makes are checked.
    """

    @_rule(
        f"model.{kind}_tower", "model.interaction", "model.embedding_dim", "model.modalities", "model.towers"
    )
    def fits(sizes: list, interaction: str, dim: int, modalities: list | None, towers: dict) -> str | None:
        names = BUILT_IN if modalities is None else modalities
        used = [name for name in names if BUILT_IN.get(name, "other") == kind and name not in towers]
        return _dot(sizes, interaction, dim) if used else None


for _kind in KINDS:
    _tower_rule(_kind)


@_rule("model.towers", "model.interaction", "model.embedding_dim")
def _own_towers(towers: dict[str, list], interaction: str, dim: int) -> str | None:
    problems = {name: _dot(sizes, interaction, dim) for name, sizes in towers.items()}
    return next((f"{name}: {problem}" for name, problem in problems.items() if problem), None)


@_rule("prepare.modalities", "prepare.vectors")
def _known(modalities: list | None, vectors: dict) -> str | None:
    available = [*BUILT_IN, *vectors]
    unknown = [name for name in modalities or [] if name not in available]
    return f"there is no '{unknown[0]}' (there is: {', '.join(available)})" if unknown else None


def _contrast(side: str) -> Rule:
    def rule(weight: float, modalities: list | None) -> str | None:
        if not weight or modalities is None or side in map(side_named, modalities):
            return None
        return f"model.modalities has no vector of {side}s to contrast; set it to 0, or add one"

    return rule


for _side in SIDES:
    _rule(f"contrastive.{_side}_weight", "model.modalities")(_contrast(_side))


@_rule("prepare.modalities")
@_rule("model.modalities")
def _twice(modalities: list | None) -> str | None:
    names = modalities or []
    return f"{', '.join(names)} names a modality twice" if len(set(names)) < len(names) else None


@_rule("model.category", "model.user_id", "model.item_id", "model.tables")
def _not_managed_alone(
    category: bool, user: bool | None, item: bool | None, tables: dict[str, TableConfig]
) -> str | None:
    # `automatic` switches on what is open where there is no other table
    switches = {"user": user, "item": item}
    on = [name for name, switch in switches.items() if (not category if switch is None else switch)]
    if on and not category and all(tables.get(name, TableConfig()).ids == "managed" for name in on):
        return "all other tables are managed, and a model needs one more table or none; set it to true"
    return None


@_rule("model.tables", "model.embedding_dim")
def _tables(tables: dict[str, TableConfig], dim: int) -> str | None:
    for name, table in tables.items():
        if table.ids != "code" and name not in ("user", "item"):
            return f"model.tables.{name}.ids={table.ids} is for the tables user and item"
        if table.ids == "hash" and table.rows is None:
            return f"model.tables.{name}.ids=hash: give the number of rows by model.tables.{name}.rows"
        if name in ("category", "user", "item") and table.dim not in (None, dim):
            return (
                f"model.tables.{name}.dim={table.dim}, while tables have model.embedding_dim ({dim}) columns"
            )
    return None


@_rule("list.dim")
def _list_dim(dim: int) -> str | None:
    return f"{dim} must be a multiple of 4, as FBGEMM reads four columns at once" if dim % 4 else None


@_rule("train.select", "list.weight")
def _mixture(select: str, weight: float) -> str | None:
    if select == "mixture" and not weight:
        return "mixture needs a list head; set list.weight above 0, or select by auc"
    return None


@_rule("contrastive.refresh", "train.epochs")
def _refresh(every: int, epochs: int | None) -> str | None:
    if every and epochs is not None and every >= epochs:
        return f"no epoch follows the first {every} of train.epochs ({epochs}); lower it, or set it to 0"
    return None


@_rule("train.accumulate", "train.batch_size")
def _micro_batches(parts: int, size: int) -> str | None:
    if size < 2 * parts:
        return f"{size} rows of a step (train.batch_size) give {parts} micro-batches less than two rows each"
    return None


@_rule("train.comms", "train.device")
def _comms(comms: str, device: str) -> str | None:
    if comms == "bf16" and device == "cpu":
        return "gloo, which CPUs use, sends no bf16; use fp16 or fp32"
    return None
