"""What the numbers of an experiment say, in sentences that are computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dlrrec_torchrec.experiments.definitions import ANY
from dlrrec_torchrec.experiments.gathered import Difference, Outcome, Results
from dlrrec_torchrec.experiments.measures import METRICS

SHOWN = 6  # differences that are told one by one; of more, the ends
CONSTANT = 0.01  # share of rows with the rarer prediction up to which a model says the same to everything

FEW_ROWS = 20  # test rows of the rarer label, below which intervals are said to be too narrow


def findings(results: Results) -> list[str]:
    """Sentences, the most important first."""
    sentences = [*_contrasts(results), *_against_the_papers(results), *_constants(results)]
    sentences += [*_rows(results), *_few_seeds(results), *_costs(results)]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def where(levels: dict[str, str], varying: Sequence[str], without: Sequence[str] = ()) -> str:
    """The levels of a cell in words, of the factors that vary; a number with its factor's name."""
    told = {
        name: levels[name] for name in varying if name not in without and levels.get(name) not in (None, ANY)
    }
    return ", ".join(f"{name} {level}" if level[:1].isdigit() else level for name, level in told.items())


def varying_factors(results: Results) -> list[str]:
    """Factors with several levels in the table."""
    return [
        name
        for name in results.experiment.factors
        if len({outcome.levels.get(name) for outcome in results.outcomes} - {None}) > 1
    ]


def signed(value: float) -> str:
    """As +0.012; a value that rounds to nothing has no sign."""
    return "0.000" if abs(value) < 5e-4 else f"{value:+.3f}"


def interval_text(difference: Difference) -> str:
    """The mean difference and its interval."""
    found = difference.interval
    if not np.isfinite([found.low, found.high]).all():
        return signed(difference.mean)
    return f"{signed(difference.mean)} [{signed(found.low)}, {signed(found.high)}]"


def _contrasts(results: Results) -> Iterator[str]:
    """A sentence for each protocol, metric and base that is compared with."""
    varying = varying_factors(results)
    groups: dict[tuple[str, ...], list[Difference]] = {}
    first = results.experiment.compared[0]
    for found in results.differences:
        if np.isfinite(found.mean) and (found.metric == first or found.metric.startswith("content_")):
            key = found.levels.get("protocol", ""), found.metric, found.factor, found.base
            groups.setdefault(key, []).append(found)
    for (protocol, metric, factor, base), differences in groups.items():
        levels = list(dict.fromkeys(found.level for found in differences))
        what = levels[0] if len(levels) == 1 else f"each other {factor}"
        beside = [name for name in varying if name != "protocol" and (name != factor or len(levels) > 1)]
        head = f"Protocol {protocol}, {METRICS[metric].title}, {what} less {base}"
        yield f"{head}: {_told(differences, beside)}."


def _told(differences: Sequence[Difference], beside: Sequence[str]) -> str:
    if len(differences) == 1:
        only = differences[0]
        return f"{interval_text(only)}, {_verdict_words(only)}{_of_seeds(only)}"
    higher = sum(found.verdict == "higher" for found in differences)
    lower = sum(found.verdict == "lower" for found in differences)
    count = f"of {len(differences)} differences {higher + lower} exclude zero"
    if higher + lower:
        count += f" ({higher} higher, {lower} lower)"
    ordered = sorted(differences, key=lambda found: found.mean)
    shown = differences if len(differences) <= SHOWN else [ordered[0], ordered[-1]]
    listed = "; ".join(f"{where(found.levels, beside) or 'all'} {interval_text(found)}" for found in shown)
    return f"{count}: {listed}" if len(differences) <= SHOWN else f"{count}; the ends are {listed}"


def _verdict_words(found: Difference) -> str:
    return {"higher": "higher", "lower": "lower", "level": "zero is in the interval"}[found.verdict]


def _of_seeds(found: Difference) -> str:
    if len(found.seeds) < 2:
        return ""
    above = sum(value > 0 for value in found.seeds)
    return f" (± {found.deviation:.3f} over {len(found.seeds)} seeds, {above} of them above zero)"


def _against_the_papers(results: Results) -> Iterator[str]:
    for metric in ("accuracy", "fpr"):
        for protocol in dict.fromkeys(outcome.levels.get("protocol", "") for outcome in results.outcomes):
            known = [
                (outcome.published[metric], outcome.mean(metric))
                for outcome in results.outcomes
                if metric in outcome.published
                and outcome.levels.get("protocol", "") == protocol
                and np.isfinite(outcome.mean(metric))
            ]
            if not known:
                continue
            published, own = np.array(known).T
            gap = own - published
            yield (
                f"{METRICS[metric].title} of {len(known)} cells whose number is published, protocol "
                f"{protocol}: published {published.min():.3f} to {published.max():.3f}, here {own.min():.3f} "
                f"to {own.max():.3f}; here less published {signed(gap.min())} to {signed(gap.max())}, on "
                f"average {signed(gap.mean())}."
            )


def _constants(results: Results) -> Iterator[str]:
    for protocol in dict.fromkeys(outcome.levels.get("protocol", "") for outcome in results.outcomes):
        shares = np.concatenate(
            [np.zeros(0)]
            + [o.finite("yes") for o in results.outcomes if o.levels.get("protocol", "") == protocol]
        )
        no, yes = int((shares <= CONSTANT).sum()), int((shares >= 1 - CONSTANT).sum())
        if no + yes:
            yield (
                f"Protocol {protocol}: {no + yes} of {len(shares)} trainings say the same to at least "
                f"{1 - CONSTANT:.0%} of the test rows ({no} no, {yes} yes), so that their accuracy and "
                "false-positive rate are a constant's."
            )


def _rows(results: Results) -> Iterator[str]:
    told: dict[tuple[str, str], Outcome] = {}
    for outcome in results.outcomes:
        if np.isfinite(outcome.rows):
            told.setdefault((outcome.levels.get("data", ""), outcome.levels.get("protocol", "")), outcome)
    for (data, protocol), outcome in told.items():
        yield (
            f"Test rows of {data}, protocol {protocol}: {outcome.rows:,.0f}, {outcome.positives:.1%} of them "
            "positive: what saying yes to everything has as accuracy, at a false-positive rate of 100%; "
            f"logistic regression on the dense features alone has AUC {outcome.mean('baseline_auc'):.3f}."
        )
        rarer = min(outcome.positives, 1 - outcome.positives) * outcome.rows
        if rarer < FEW_ROWS:
            yield (
                f"Test rows of {data}, protocol {protocol}, have {rarer:,.0f} "
                f"{'negative' if outcome.positives > 0.5 else 'positive'} ones a seed: AUC and FPR "
                "rest on these few, and draws of test users cannot tell what others would do: their "
                "intervals are too narrow."
            )


def _few_seeds(results: Results) -> Iterator[str]:
    if results.differences and max(len(found.seeds) for found in results.differences) == 1:
        yield "With one seed the intervals tell of other test users, not of other splits or weights."


def _costs(results: Results) -> Iterator[str]:
    seconds = np.concatenate([np.zeros(0)] + [outcome.finite("seconds") for outcome in results.outcomes])
    peaks = np.concatenate([np.zeros(0)] + [outcome.finite("peak_mib") for outcome in results.outcomes])
    if len(seconds):
        yield (
            f"{len(seconds)} trainings took {seconds.sum() / 60:,.1f} minutes in all, {seconds.min():,.0f} "
            f"to {seconds.max():,.0f} seconds each; peak memory {peaks.max():,.0f} MiB."
        )
