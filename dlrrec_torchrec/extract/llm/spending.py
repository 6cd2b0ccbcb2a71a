"""What calls cost, and the budget of a command."""

from __future__ import annotations

import dataclasses
from typing import Any

from dlrrec_torchrec.config.llm_section import OPENAI_URL, LlmConfig
from dlrrec_torchrec.extract.llm.local_model import is_local
from dlrrec_torchrec.extract.llm.one_budget import Used, of_command
from dlrrec_torchrec.store.errors import DataError, Unfinished

BATCH_SHARE = 0.5  # of the price, by OpenAI's Batch API
_MILLION = 1_000_000
_ROUNDING = 1 + 1e-9  # of sums of money
_FLAGS = {"US dollars": "--budget", "calls": "--budget-calls", "tokens": "--budget-tokens"}


@dataclasses.dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens, and whose numbers they are."""

    input: float
    output: float
    source: str

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / _MILLION


def is_openai(settings: LlmConfig) -> bool:
    """Whether calls go to OpenAI's own address."""
    return settings.base_url.rstrip("/") == OPENAI_URL


def known_prices(settings: LlmConfig) -> Prices | None:
    """The given prices, else those that genai-prices has of the model, in batches where these are asked for;
    None where nobody knows them."""
    given = settings.input_price, settings.output_price
    if None not in given:
        return Prices(*given, "as given")
    if given != (None, None):
        raise DataError(
            "llm.input_price (--input-price) and llm.output_price (--output-price): give both, or neither"
        )
    if is_local(settings):
        return Prices(0.0, 0.0, "on this machine")
    from genai_prices import Usage, calc_price

    where = {"provider_id": "openai"} if is_openai(settings) else {"provider_api_url": settings.base_url}
    sides = []
    for side in ("input_tokens", "output_tokens"):
        try:
            small = calc_price(Usage(**{side: 1000}), settings.model, **where)  # below what a tier begins at
        except LookupError:
            return None
        sides.append(float(small.total_price) * _MILLION / 1000)
    from importlib.metadata import version

    source = f"genai-prices {version('genai-prices')}"
    if settings.batch and is_openai(settings):
        sides, source = [BATCH_SHARE * side for side in sides], f"{source}, in batches"
    return Prices(*sides, source)


class Budget:
    """Counts the calls, tokens and money of one kind of calls (about texts, pictures or vectors), and refuses
    what could pass a limit of the settings together with the others of the command (`one_budget.one_budget`).

    Each call is counted with the most that it may use until its answer says what it used.

    Raises DataError for a budget in money where the prices are not known.
    """

    def __init__(self, settings: LlmConfig, prices: Prices | None):
        if settings.budget is not None and prices is None:
            raise DataError(
                f"llm.budget (--budget): nobody told the price of '{settings.model}' at {settings.base_url}; "
                "give it by --input-price and --output-price, or a budget in calls or tokens by "
                "--budget-calls or --budget-tokens"
            )
        self.prices = prices
        limits = {
            "US dollars": settings.budget,
            "calls": settings.budget_calls,
            "tokens": settings.budget_tokens,
        }
        self._limits = {unit: limit for unit, limit in limits.items() if limit is not None}
        self._used, self._command = Used(), of_command()

    def reserve(self, input_tokens: int, output_tokens: int) -> None:
        """Before a call that may use so many tokens. Raises Unfinished where the budget does not allow it."""
        call = self._call(input_tokens, output_tokens)
        after = dataclasses.replace(self._command.used)
        after.add(self._command.open)
        after.add(call)
        for unit, limit in self._limits.items():
            if (alone := call.units()[unit]) > limit:
                raise Unfinished(
                    f"the budget of {_number(limit, unit)} {unit} is less than what the next call may use "
                    f"({_number(alone, unit)}): give more by {_FLAGS[unit]}; all answers are kept, and "
                    "the same command goes on from here"
                )
            if after.units()[unit] > limit * _ROUNDING:
                raise Unfinished(self._message(unit, limit))
        self._command.open.add(call)

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """After a call: what was reserved, and the tokens that it used (None: it brought no answer)."""
        self._command.open.add(self._call(*reserved), -1)
        if used is not None:
            self.use(*used)

    def use(self, input_tokens: int, output_tokens: int) -> None:
        """A call that was not reserved here has used these tokens."""
        for counted in (self._used, self._command.used):
            counted.add(self._call(input_tokens, output_tokens))

    @property
    def calls(self) -> int:
        """Calls of this kind."""
        return self._used.calls

    @property
    def facts(self) -> dict[str, Any]:
        """What the calls of this kind used, for a manifest; us_dollars None where prices are not known."""
        used = self._used
        return {
            "calls": used.calls,
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
            "us_dollars": None if self.prices is None else round(used.money, 6),
            "prices": None if self.prices is None else self.prices.source,
        }

    def _call(self, inputs: int, outputs: int) -> Used:
        return Used(1, inputs, outputs, 0.0 if self.prices is None else self.prices.cost(inputs, outputs))

    def _message(self, unit: str, limit: float) -> str:
        used, open_calls = self._command.used, self._command.open.calls
        under_way = f", {open_calls:,} more under way" if open_calls else ""
        return (
            f"the budget of {_number(limit, unit)} {unit} would be passed by the next call "
            f"({_number(used.units()[unit], unit)} {unit} used by {used.calls:,} calls{under_way}); all "
            "answers are kept: the same command goes on from here, with the same budget once more "
            "(`dlrrec extract --estimate` tells what is left)"
        )


def _number(number: float, unit: str) -> str:
    return f"{number:,.4g}" if unit == "US dollars" else f"{number:,.0f}"
