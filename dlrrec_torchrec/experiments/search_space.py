"""What `dlrrec tune` may change: settings of a variant, each with its values.

A setting that the configuration leaves at its default is searched; one that it fixes is not, unless it is
asked for by name. The configuration's own value is always among those of a setting, so that the first trial
can be the configuration itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.automatic import DataSize, automatic, automatic_lists
from dlrrec_torchrec.config.check import range_problem
from dlrrec_torchrec.config.names import sections
from dlrrec_torchrec.config.read import VARYING, field_value, value_of
from dlrrec_torchrec.store.errors import DataError

LOG_FROM = 10.0  # ratio of the ends of a range from which values are drawn on a log scale
_DIGITS = 3  # of a drawn number

# Settings that say what is measured, how, or where; another value would not be a better one.
_NO_CHOICE = frozenset(
    """train.select train.seed train.device train.workers train.resume train.checkpoint_steps
    train.keep_checkpoints train.background_checkpoints train.log_steps train.profile list.val_users
    model.modalities model.vectors model.towers model.tables contrastive.permuted""".split()
)


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones, or rounded to three significant digits."""

    low: float
    high: float
    whole: bool = False

    @property
    def log(self) -> bool:
        """Whether the logarithm is drawn evenly: the ends are LOG_FROM times apart."""
        return self.low > 0 and self.high >= LOG_FROM * self.low

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that an optuna trial draws."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        drawn = trial.suggest_float(name, self.low, self.high, log=self.log)
        return min(max(float(f"{drawn:.{_DIGITS}g}"), self.low), self.high)

    def encode(self, value: Any) -> Any:
        """A value as optuna keeps it."""
        return int(value) if self.whole else float(value)

    def holding(self, value: Any, name: str) -> Range:
        """This range, wide enough for `value`. Raises DataError where its scale has no such value."""
        if value is None:
            raise DataError(
                f"--search {name}={self}: the configuration leaves it open, and a range does not hold that; "
                f"list the values, as --search '{name}=[null,{self.low:g},{self.high:g}]'"
            )
        wider = dataclasses.replace(self, low=min(self.low, value), high=max(self.high, value))
        if self.log and not wider.low > 0:
            raise DataError(
                f"--search {name}={self}: a log scale does not hold the configuration's own {value:g}; "
                f"list the values, as --search '{name}=[{value:g},{self.low:g},{self.high:g}]'"
            )
        return wider

    def values(self) -> list[Any]:
        """Values to check before anything is trained."""
        return [self.encode(self.low), self.encode(self.high)]

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """A few values, as JSON has them."""

    of: tuple[str, ...]  # JSON texts, which optuna keeps

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that an optuna trial draws."""
        return json.loads(trial.suggest_categorical(name, self.of))

    def encode(self, value: Any) -> str:
        """A value as optuna keeps it."""
        return json.dumps(value)

    def holding(self, value: Any, name: str) -> Choices:
        """These choices, with `value` first where it is not among them."""
        text = self.encode(value)
        return self if text in self.of else Choices((text, *self.of))

    def values(self) -> list[Any]:
        """Values to check before anything is trained."""
        return [json.loads(text) for text in self.of]

    def __str__(self) -> str:
        return "[" + ",".join(text.replace(" ", "") for text in self.of) + "]"


Values = Range | Choices


def _around(down: float, up: float) -> Callable[[float], Values]:
    """From the configuration's value divided by `down` to `up` times it."""
    return lambda own: Range(float(f"{own / down:.2g}"), float(f"{own * up:.2g}"))


def _choices(*values: Any) -> Choices:
    return Choices(tuple(json.dumps(value) for value in values))


# What is searched unless asked otherwise: setting -> the configuration's own value -> values.
DEFAULT: dict[str, Callable[[Any], Values]] = {
    "train.lr": _around(10, 10),
    "train.residual_lr": _around(10, 10),
    "train.weight_decay": _around(30, 10),
    "model.dropout": lambda _: Range(0.0, 0.6),
    "model.tower_dropout": lambda _: Range(0.0, 0.6),
    "model.over_arch": lambda _: _choices([32, 1], [64, 1], [256, 16, 1]),
    "list.tau": lambda _: Range(0.05, 0.5),
    "list.id_lr": _around(10, 10),
    "list.weight": lambda _: Range(0.1, 10.0),
    "contrastive.item_weight": lambda _: _choices(0.0, 0.03, 0.1, 0.3),
    "contrastive.user_weight": lambda _: _choices(0.0, 0.03, 0.1, 0.3),
    "contrastive.temperature": lambda _: Range(0.05, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        searched: setting -> its values.
        own: setting -> the configuration's own value, of all in `searched`.
        fixed: setting -> value, of those in DEFAULT that the configuration fixes.
    """

    searched: dict[str, Values]
    own: dict[str, Any]
    fixed: dict[str, Any]

    def described(self) -> dict[str, str]:
        """As plain text, to tell spaces apart."""
        return {name: f"{values} {json.dumps(self.own[name])}" for name, values in self.searched.items()}


def search_space(config: RunConfig, size: DataSize, asked: Iterable[str] = ()) -> Space:
    """What is searched for a variant on data of this size.

    Args:
        config: as the variant changes it.
        asked: SETTING or SETTING=RANGE each, in place of DEFAULT; a range is LOW..HIGH or [A,B,...].

    Raises:
        DataError: a setting or a range that cannot be, or nothing left to search.
    """
    asked = list(asked)
    model, train, _ = automatic(config.model, config.train, size)
    lists, _ = automatic_lists(config.list, size.later)
    chosen = dataclasses.replace(config, model=model, train=train, list=lists)
    if asked:
        given = dict(_parsed(text, chosen) for text in asked)
        fixed: dict[str, Any] = {}
    else:
        names = [name for name in DEFAULT if _applies(name, config)]
        fixed = {name: value_of(config, name) for name in names if not _is_open(config, name)}
        given = {name: DEFAULT[name](value_of(chosen, name)) for name in names if name not in fixed}
    if not given:
        raise DataError(
            "tune: the configuration fixes every setting that is searched by default; name those to search "
            "all the same, as --search train.lr model.dropout"
        )
    own = {name: value_of(chosen, name) for name in given}
    searched = {name: values.holding(own[name], name) for name, values in given.items()}
    return Space(searched, own, fixed)


def _is_open(config: RunConfig, name: str) -> bool:
    return value_of(config, name) == value_of(RunConfig(), name)


def _applies(name: str, config: RunConfig) -> bool:
    """Whether a setting has any effect on the variant."""
    if name.startswith("list."):
        return config.list.weight > 0
    if name == "contrastive.temperature":
        return config.contrastive.item_weight > 0 or config.contrastive.user_weight > 0
    return True


def _parsed(text: str, config: RunConfig) -> tuple[str, Values]:
    """One of `asked`: the setting and its values."""
    name, equals, values = text.partition("=")
    section, _, key = name.partition(".")
    fields = {f.name: f for f in dataclasses.fields(sections()[section])} if section in VARYING else {}
    if key not in fields or name in _NO_CHOICE:
        known = f"known by default: {', '.join(DEFAULT)}; others of {', '.join(VARYING)} with a range"
        raise DataError(f"--search {text}: '{name}' is no setting that can be searched ({known})")
    if not equals:
        if name not in DEFAULT:
            raise DataError(
                f"--search {name}: say which values, as '{name}=LOW..HIGH' or '{name}=[A,B]' (known without: "
                f"{', '.join(DEFAULT)})"
            )
        own = value_of(config, name)
        found = DEFAULT[name](own)
        if isinstance(found, Range) and not found.low < found.high:
            raise DataError(
                f"--search {name}: the configuration's own value is {own:g}, which gives no range; say which "
                f"values, as --search '{name}=[{own:g},0.01,0.1,1]'"
            )
        return name, found
    hint = typing.get_type_hints(sections()[section])[key]
    found = _range(text, values, whole=int in (hint, *typing.get_args(hint)))
    for value in found.values():
        try:
            parsed = field_value(value, hint, fields[key], name, lambda *problem: None)
            problem = range_problem(parsed, fields[key])
        except ValueError as error:
            problem = str(error)
        if problem is None and name == "list.weight" and not value:
            problem = "without a list head another quantity is measured; search above 0"
        if problem:
            raise DataError(f"--search {text}: {problem}")
    return name, found


def _range(text: str, values: str, whole: bool) -> Values:
    """LOW..HIGH or [A,B,...]."""
    if values.startswith("["):
        try:
            listed = yaml.safe_load(values)
        except yaml.YAMLError:
            listed = None
        if not isinstance(listed, list) or len(listed) < 2:
            raise DataError(f"--search {text}: '{values}' is no list of two values or more, as [A,B]")
        return _choices(*map(_number, listed))
    low, dots, high = values.partition("..")
    try:
        ends = float(low), float(high)
        if not dots or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
            raise ValueError
        if whole and not all(end.is_integer() for end in ends):
            raise ValueError
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise DataError(
            f"--search {text}: '{values}' is neither LOW..HIGH, two {kind}, nor a list as [A,B]"
        ) from None
    return Range(*ends, whole=whole)


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
