"""What the page says in words: the summary, the examples, the data."""

import html
import re

import pytest

from dlrrec_torchrec.report.about import Origin, data_html, data_line, first_rejected, origin_html
from dlrrec_torchrec.report.examples import examples_html
from dlrrec_torchrec.report.in_words import sentences
from dlrrec_torchrec.store.manifest import Manifest


def spread(*seeds):
    return {"mean": sum(seeds) / len(seeds), "sd": 0.01 if len(seeds) > 1 else None, "seeds": list(seeds)}


def row(*auc):
    return {"auc": spread(*auc)} | {f"{n}_share": {"mean": None} for n in ("reachable", "attainable")}


def gap(against, verdict):
    difference, low, high = {"better": (0.05, 0.02, 0.08), "level": (0.01, -0.02, 0.04)}.get(
        verdict, (-0.03, -0.05, -0.01)
    )
    return {"against": against, "difference": difference, "low": low, "high": high, "verdict": verdict}


def results(rating, listing, seeds=1):
    """A summary: AUC .81 against LightGBM's .80, Recall@20 .3 against ALS's .32."""
    return {
        "seeds": seeds,
        "models": {"dlrrec": row(*[0.81] * seeds), "bce": row(*[0.9] * seeds)},
        "baselines": {"item mean": row(*[0.7] * seeds)},
        "peers": {"LightGBM": row(*[0.8] * seeds)},
        "differences": {"dlrrec": [gap("LightGBM", verdict) for verdict in rating]},
        "lists": {
            "models": {"dlrrec": {"recall@20": spread(*[0.3] * seeds)}},
            "peers": {"EASE": {"recall@20": spread(0.2)}, "ALS": {"recall@20": spread(*[0.32] * seeds)}},
            "differences": {"recall@20": {"dlrrec": [gap("ALS", verdict) for verdict in listing]}},
        },
    }


def test_three_sentences_with_the_interval():
    rating, lists, meaning = sentences(results(["level"], ["worse"]))
    assert "AUC 0.810, 0.010 above the best other method, LightGBM (0.800)" in rating
    assert rating.endswith("95 % interval of the difference −0.020 to +0.040.")
    assert "30.0% of what a user likes" in lists and "0.020 below the best other method, ALS (0.320)" in lists
    assert "cannot be told apart from LightGBM at rating items and is worse than ALS at listing" in meaning
    assert "another split or seed may say otherwise" in meaning


@pytest.mark.parametrize(
    "verdicts, words",
    [
        (["better"] * 3, "is better than LightGBM"),
        (["better", "level", "level", "level"], "cannot be told apart from LightGBM"),
        (["better", "level", "better"], "is better than LightGBM"),
        (["level"] * 3, "cannot be told apart from LightGBM"),
    ],
)
def test_several_seeds_are_judged_by_their_mean_interval(verdicts, words):
    rating, _, meaning = sentences(results(verdicts, verdicts, seeds=len(verdicts)))
    counted = sum(verdict != "level" for verdict in verdicts)
    assert f"without zero in {counted} of {len(verdicts)} seeds" in rating and words in meaning
    assert "another split or seed" not in meaning


def test_what_was_not_measured_is_not_judged():
    summary = results([], [])
    summary["lists"]["models"] = {}
    assert len(sentences(summary)) == 1
    summary["models"]["dlrrec"]["auc"]["mean"] = None
    assert "cannot be compared" in sentences(summary)[0]


def test_a_share_below_chance_is_no_way_from_chance():
    summary = results(["worse"], ["worse"])
    summary["models"]["dlrrec"] |= {"reachable_share": {"mean": 0.5}, "attainable_share": {"mean": -0.2}}
    rating = sentences(summary)[0]
    assert "50% to the reachable AUC" in rating and "attainable" not in rating


def words(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page)))


def test_examples_have_the_history_before_the_list_and_mark_test_rows():
    user = {
        "user": "u7",
        "training_rows": 1200,
        "best_rated": [{"title": "Alien", "rating": 4.5}],
        "recommended": [
            {"title": "Fargo", "probability": 0.914, "test_row": "liked"},
            {"title": "Speed", "probability": 0.4, "test_row": "not liked"},
            {"title": "Heat", "probability": 0.3, "test_row": None},
        ],
    }
    text = words(examples_html({"variant": "dlrrec", "note": "", "users": [user]}))
    order = ["User u7, 1,200 training reviews", "Rated best", "Alien 4.5", "Recommended"]
    order += ["✓ liked in a test row", "91%", "Speed ✗ not liked in a test row 40%", "Heat 30%"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    none = examples_html({"variant": "dlrrec", "note": "it has no list head", "users": []})
    assert "No examples: it has no list head" in none


def test_data_in_words_without_the_keys_of_the_files(tmp_path):
    covered = {
        part: {"user_text": share, "user_positives": (1 + share) / 2}
        for part, share in {"train": 1.0, "val": 0.5, "test": 0.0}.items()
    }
    parts = {"train": {"rows": 10, "users": 4, "items": 3, "positives": 5},
             "val": {"rows": 0, "users": 0, "items": 0, "positives": 0}}  # fmt: skip
    dropped = {"min_reviews": 12, "test_unknown_user": 0}
    swing = {
        "users": {"ids": 30, "coverage": 0.5, "neighbors": 60, "dropped": {"edges_in_x": 3}},
        "seconds": 1.0,
    }
    stages = {
        "ingest": [
            Manifest("ingest", {"source": "synthetic", "size": "small"}, {}, {"reviews": 9}, {"users": 4})
        ],
        "split": [Manifest("split", {}, {}, facts={"parts": parts, "dropped": dropped})],
        "extract": [Manifest("extract", {}, {}, facts={"texts": 1710, "fingerprint": "79f8"})],
        "swing": [Manifest("swing", {}, {}, facts=swing)],
        "prepare": [Manifest("prepare", {}, {}, facts={"coverage": covered, "in_rows": ["user_text"]})],
    }
    text = words(data_html(stages, Origin()))
    assert data_line(stages) == "synthetic world, size small · 9 reviews · 4 users · 50% of those kept liked"
    assert "No row of reviews was rejected." in text
    assert "training 10 4 3 50.0%" in text and "validation 0 0 0 –" in text
    assert "too few reviews (split.min_reviews) 12" in text and "users without a training row" not in text
    assert "users 30 50% 60" in text and "texts to be embedded 1,710" in text
    assert "user text 100% 50% 0%" in text and "user's SWING neighbours 100% 75% 50%" in text
    for raw in ("in_rows", "in rows", "edges", "fingerprint", "seconds", "{"):
        assert raw not in text
    assert data_html({}, Origin()) == "" and data_line({}) == "" and first_rejected(tmp_path) == []


def test_settings_that_nobody_changed_are_said_to_be_none():
    assert "Settings other than the defaults none" in words(origin_html(Origin(settings={}), {}))
    assert "Settings" not in origin_html(Origin(made="today"), {})
    shown = words(origin_html(Origin(settings={"a.b": {"x": [1, 2]}, "c": True, "d": 0.003, "e": None}), {}))
    assert "a.b: x 1, 2" in shown and "c: yes" in shown and "d: 0.003" in shown and "e: none" in shown


def test_one_is_singular():
    assert Manifest("report", {}, {}, {"seeds": 1, "test": 1955}).rows_text == "1 seed, 1,955 test"
    assert Manifest("report", {}, {}, {"seeds": 2, "test": 1}).rows_text == "2 seeds, 1 test"
