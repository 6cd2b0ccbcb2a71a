"""What calls cost, and the budget of a command."""

from __future__ import annotations

import dataclasses

from dlrrec_torchrec.config.llm_section import OPENAI_URL, LlmConfig
from dlrrec_torchrec.extract.llm.local_model import is_local
from dlrrec_torchrec.store.errors import DataError, Unfinished

BATCH_SHARE = 0.5  # of the price, by OpenAI's Batch API
_MILLION = 1_000_000
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
    """Counts calls, tokens and money of this command, and refuses what could pass a limit of the settings.

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
        self.calls = self.input_tokens = self.output_tokens = 0
        self._open = [0, 0, 0]  # calls, tokens of input and of output that are under way

    def reserve(self, input_tokens: int, output_tokens: int) -> None:
        """Before a call that may use so many tokens. Raises Unfinished where the budget does not allow it."""
        after = (self._open[0] + 1, self._open[1] + input_tokens, self._open[2] + output_tokens)
        used = self._used(*after)
        alone = Budget.of_call(self.prices, input_tokens, output_tokens)
        for unit, limit in self._limits.items():
            if alone[unit] > limit:
                raise Unfinished(
                    f"the budget of {_number(limit, unit)} {unit} is less than what the next call may use "
                    f"({_number(alone[unit], unit)}): give more by {_FLAGS[unit]}; all answers are kept, and "
                    "the same command goes on from here"
                )
            if used[unit] > limit:
                raise Unfinished(self._message(unit, limit))
        self._open = list(after)

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """After a call: what was reserved, and the tokens that it used (None: it brought no answer)."""
        self._open = [self._open[0] - 1, self._open[1] - reserved[0], self._open[2] - reserved[1]]
        if used is not None:
            self.use(*used)

    def use(self, input_tokens: int, output_tokens: int) -> None:
        """A call that was not reserved here has used these tokens."""
        self.calls += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    @property
    def cost(self) -> float | None:
        """US dollars spent, None where the prices are not known."""
        return None if self.prices is None else self.prices.cost(self.input_tokens, self.output_tokens)

    @staticmethod
    def of_call(prices: Prices | None, inputs: int, outputs: int) -> dict[str, float]:
        """What a call with so many tokens uses, by unit."""
        money = 0.0 if prices is None else prices.cost(inputs, outputs)
        return {"US dollars": money, "calls": 1, "tokens": inputs + outputs}

    def _used(self, calls: int, inputs: int, outputs: int) -> dict[str, float]:
        inputs, outputs = self.input_tokens + inputs, self.output_tokens + outputs
        money = 0.0 if self.prices is None else self.prices.cost(inputs, outputs)
        return {"US dollars": money, "calls": self.calls + calls, "tokens": inputs + outputs}

    def _message(self, unit: str, limit: float) -> str:
        spent, open_calls = _number(self._used(0, 0, 0)[unit], unit), self._open[0]
        under_way = f", {open_calls:,} more under way" if open_calls else ""
        return (
            f"the budget of {_number(limit, unit)} {unit} would be passed by the next call ({spent} {unit} "
            f"used by {self.calls:,} calls{under_way}); all answers are kept: the same command goes on from "
            "here, with the same budget once more (`dlrrec extract --estimate` tells what is left)"
        )


def _number(number: float, unit: str) -> str:
    return f"{number:,.4g}" if unit == "US dollars" else f"{number:,.0f}"
