"""What to do where the tables do not fit: which one is too large, and which tried changes help."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator

from torchrec.distributed.planner.types import ShardingOption, Storage

from dlrrec_torchrec.sharding.describe import amount
from dlrrec_torchrec.sharding.planner import NoPlan, Plan, Request, choices, solve
from dlrrec_torchrec.sharding.tables import Table, constraints
from dlrrec_torchrec.store.errors import DataError

PLACES = {"hbm": "device memory", "ddr": "host memory", "ssd": "SSD"}
_MOST = 1 << 13  # ranks
Change = Callable[[Request], Request]


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A changed request that can be planned, and the change in words."""

    words: str
    request: Request


class Impossible(DataError):
    """The tables do not fit; the message says which, and which of `suggestions` would make them fit."""

    def __init__(self, problem: str, suggestions: list[Suggestion]) -> None:
        self.problem, self.suggestions = problem, suggestions
        super().__init__(self.text(lambda words: words))

    def for_training(self) -> str:
        """The message where the number of ranks is the launcher's, not a flag."""
        return self.text(lambda words: re.sub(r"--world-size (\d+)", r"\1 ranks", words))

    def text(self, spell: Callable[[str], str]) -> str:
        """The problem, then each suggestion as `spell` writes it."""
        lines = [f"  {spell(s.words)}" for s in self.suggestions]
        lines = ["what would fit:", *lines] if lines else ["no change that was tried would fit"]
        return "\n".join([self.problem, *lines])


def make_plan(request: Request) -> Plan:
    """As `planner.solve`, but raises Impossible, with advice, where there is no plan."""
    try:
        return solve(request)
    except NoPlan:
        problem, blamed = explain(request)
        raise Impossible(problem, suggestions(request, blamed)) from None


def explain(request: Request) -> tuple[str, list[list[str]]]:
    """What does not fit, in words, and groups of tables to blame, the smallest group first."""
    best, available = _best_ways(request)
    tables = {table.name: table for table in request.tables}
    needs = {name: _need(way, request.world_size) for name, way in best.items()}
    culprits = [name for name, need in needs.items() if _share(need, available) > 1]
    lines = [
        f"table {tables[name]} does not fit: at best ({best[name].sharding_type}, "
        f"{best[name].compute_kernel}) a rank needs {_too_much(needs[name], available)}"
        for name in culprits
    ]
    blamed = [culprits]
    if not culprits:
        largest = max(tables.values(), key=lambda table: table.weight_bytes)
        blamed = [[largest.name], list(tables)]
        over = _too_much(_mean(best, request.world_size), available)
        lines = [
            "the tables fit one by one but not together"
            + (f": a rank would need {over}" if over else ", as their parts cannot be spread evenly enough")
            + f"; the largest is {largest}"
        ]
    where = f"{request.world_size} x {request.device.name}, {request.optimizer}"
    return f"no plan for {where}: " + "; ".join(lines), blamed


def _best_ways(request: Request) -> tuple[dict[str, ShardingOption], Storage]:
    """For each table the way to store it that leaves the fullest rank most room; and the free memory."""
    ways, available = choices(request)
    best: dict[str, ShardingOption] = {}
    for way in ways:
        shares = [_share(_need(w, request.world_size), available) for w in (way, best.get(way.name, way))]
        if way.name not in best or shares[0] < shares[1]:
            best[way.name] = way
    return best, available


def _mean(best: dict[str, ShardingOption], world_size: int) -> Storage:
    """What a rank would store if all parts were spread evenly."""
    totals = [way.total_storage for way in best.values()]
    return Storage(*(math.ceil(sum(getattr(t, place) for t in totals) / world_size) for place in PLACES))


def _need(option: ShardingOption, world_size: int) -> Storage:
    """What the rank with most of the table stores of it."""
    parts = math.ceil(len(option.shards) / world_size)
    return Storage(*(parts * max(getattr(s.storage, place) for s in option.shards) for place in PLACES))


def _share(need: Storage, available: Storage) -> float:
    """The need divided by the free memory, of the scarcest kind of memory."""
    pairs = [(getattr(need, place), getattr(available, place)) for place in PLACES]
    return max((needed / free if free else math.inf for needed, free in pairs if needed), default=0)


def _too_much(need: Storage, available: Storage) -> str:
    shortages = []
    for place, words in PLACES.items():
        needed, free = getattr(need, place), getattr(available, place)
        if needed > free:
            shortages.append(f"{amount(needed)} of {words}, {amount(free)} are free for tables")
    return " and ".join(shortages)


def suggestions(request: Request, blamed: list[list[str]]) -> list[Suggestion]:
    """Changes with which there is a plan: single ones, or if none is enough the first few; and more ranks.

    Args:
        blamed: groups of tables to change; the next group is tried where nothing helped in the last.
    """
    for group in blamed:
        changes = list(_changes(request, group))
        helpful = [s for _, words, change in changes if (s := _tried(f"--set {words}", change(request)))]
        if helpful:
            break
    together, chosen_words, several = request, {}, []
    for setting, words, change in changes:
        if _allowed(change(together)):
            together, chosen_words = change(together), chosen_words | {setting: words}
            several.append((f"--set {' '.join(chosen_words.values())}", together))
    if not helpful:
        tried = (_tried(words, changed) for words, changed in several)
        helpful = list(itertools.islice(filter(None, tried), 1))
    helpful += _more_ranks(request)
    for words, changed in several:
        helpful = helpful or _more_ranks(changed, f"{words} ")
    return helpful


def _changes(request: Request, names: list[str]) -> Iterator[tuple[str, str, Change]]:
    """(setting, words, change) of changes that may help the tables; the strongest of a setting is last."""

    def change(concerned: list[Table], setting: str, value: str, field: object) -> tuple[str, str, Change]:
        words = " ".join(f"model.tables.{table.name}.{setting}={value}" for table in concerned)
        names_to_change = [table.name for table in concerned]

        def changed(old: Request) -> Request:
            tables = (
                dataclasses.replace(t, **{setting: field}) if t.name in names_to_change else t
                for t in old.tables
            )
            return dataclasses.replace(old, tables=tuple(tables))

        return setting, words, changed

    if request.optimizer == "adam":
        words = "train.table_optimizer=rowwise_adagrad"
        yield "optimizer", words, lambda old: dataclasses.replace(old, optimizer="rowwise_adagrad")
    tables = [table for table in request.tables if table.name in names]
    allowed = _allowed(request)
    for sharding in ("column_wise", "row_wise"):
        if concerned := [t for t in tables if sharding not in allowed[t.name]]:
            yield change(concerned, "sharding", sharding, (sharding,))
    if concerned := [t for t in tables if t.dtype == "fp32"]:
        yield change(concerned, "dtype", "fp16", "fp16")
    if request.device.kind == "cuda":
        for kernel in ("fused_uvm_caching", "fused_uvm", "key_value"):
            if concerned := [t for t in tables if kernel not in t.kernels]:
                yield change(concerned, "kernels", kernel, (kernel,))


def _allowed(request: Request) -> dict[str, list[str]]:
    """The sharding types that each table may have; {} if one of the tables has none."""
    try:
        return {
            t.name: constraints(t, request.device, request.optimizer).sharding_types for t in request.tables
        }
    except DataError:
        return {}


def _more_ranks(request: Request, words: str = "") -> list[Suggestion]:
    """The fewest ranks, in doublings, that there is a plan for; none where more ranks do not help."""
    previous_worst = math.inf
    while (request := dataclasses.replace(request, world_size=2 * request.world_size)).world_size <= _MOST:
        try:
            best, available = _best_ways(request)
        except DataError:
            return []
        worst = max(_share(_need(way, request.world_size), available) for way in best.values())
        mean = _share(_mean(best, request.world_size), available)
        if worst > 1 and worst >= previous_worst:  # the parts do not get smaller
            return []
        previous_worst = worst
        if max(worst, mean) <= 1 and (s := _tried(f"{words}--world-size {request.world_size}", request)):
            return [s]
    return []


def _tried(words: str, request: Request) -> Suggestion | None:
    try:
        solve(request)
    except DataError:
        return None
    return Suggestion(words, request)
