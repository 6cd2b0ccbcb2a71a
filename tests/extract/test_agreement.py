"""Agreement of extracted tags and types with metadata, by hand, by scikit-learn and on real reviews."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from dlrrec_torchrec.extract.agreement import category_agreement, micro_scores, price_agreement, tercile_tags
from dlrrec_torchrec.extract.providers.offline import prevalence
from dlrrec_torchrec.extract.rules.categories import TypeMatcher, rank_types
from dlrrec_torchrec.extract.rules.price import price_evidence, price_tag
from dlrrec_torchrec.store import schema

ZOMATO = Path(__file__).parents[2].parent / "shared" / "data" / "zomato"


def test_agreement_of_prices():
    prices = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert tercile_tags(np.append(prices, np.nan)) == [
        *["cheap"] * 2,
        *["fair"] * 2,
        *["overpriced"] * 2,
        "none",
    ]
    tags = ["cheap", "cheap", "overpriced", "none", "fair", "overpriced"]
    scores = price_agreement(tags, prices)
    assert scores["spearman"] == pytest.approx(spearmanr([0, 0, 2, 1, 2], [1, 2, 3, 5, 6])[0], abs=1e-4)
    assert (scores["items"], scores["tagged"], scores["equal"], scores["majority"]) == (6, 5, 0.6, 0.4)
    assert price_agreement(["fair", "fair"], np.asarray([1.0, 2.0]))["spearman"] is None
    untagged = {"items": 1, "tagged": 0, "macro_f1": 0.0, "macro_f1_majority": 1.0}
    assert price_agreement(["none"], np.asarray([1.0])) == untagged


def test_macro_f1_of_prices_equals_sklearn():
    random = np.random.default_rng(0)
    for n in (3, 10, 50):
        prices, tags = random.random(n), random.choice(schema.PRICE_TAGS, n).tolist()
        scores, truth = price_agreement(tags, prices), tercile_tags(prices)
        options = {"labels": sorted(set(truth)), "average": "macro", "zero_division": 0}
        assert scores["macro_f1"] == pytest.approx(f1_score(truth, tags, **options), abs=1e-4)
        common = [Counter(truth).most_common(1)[0][0]] * n
        assert scores["macro_f1_majority"] == pytest.approx(f1_score(truth, common, **options), abs=1e-4)


def test_agreement_of_categories_equals_sklearn():
    truth = [["pizza", "Italian", "Space Food"], ["Sushi", "Pizza"], ["Moon Food"], ["Thai"]]
    extracted = [["Buffet", "Pizza"], ["Sushi", "Thai", "Pizza"], ["Pizza"], []]
    scores = category_agreement(extracted, truth, 11)
    assert scores["items"] == 3 and scores["uncovered"] == {"Space Food": 1, "Moon Food": 1}
    known_types = [{"Pizza", "Italian"}, {"Sushi", "Pizza"}, {"Thai"}]
    ranked = {
        "extracted": [extracted[0], extracted[1], extracted[3]],
        "in_use": [["Pizza"], extracted[1], []],
        "baseline": [["Pizza", "Italian", "Sushi", "Thai"]] * 3,
    }
    for k in (1, 3, 5, 11):
        for name, lists in ranked.items():
            binary = MultiLabelBinarizer().fit([*known_types, *lists])
            expected = precision_recall_fscore_support(
                binary.transform(known_types), binary.transform([r[:k] for r in lists]), average="micro"
            )
            assert scores[f"at_{k}"][name] == pytest.approx(expected[:3], abs=1e-4)
            used = [n for n, c in enumerate(binary.classes_) if any(c in types for types in known_types)]
            sides = binary.transform(known_types)[:, used], binary.transform([r[:k] for r in lists])[:, used]
            macro = f1_score(*sides, average="macro", zero_division=0)
            assert scores[f"macro_f1_at_{k}"][name] == pytest.approx(macro, abs=1e-4)


@pytest.mark.skipif(not ZOMATO.exists(), reason="the Zomato reviews are not here")
def test_extraction_beats_the_baselines_on_real_reviews():
    with open(ZOMATO / "reviews.csv", encoding="utf-8") as stream:
        reviews = [(r["Restaurant"], r["Review"]) for r in csv.DictReader(stream)]
    with open(ZOMATO / "restaurants.csv", encoding="utf-8") as stream:
        metadata = {r["Name"]: r for r in csv.DictReader(stream)}
    names = sorted({name for name, _ in reviews} & metadata.keys())
    code = np.asarray([names.index(name) if name in metadata else -1 for name, _ in reviews])
    texts = [text for _, text in reviews]
    matcher = TypeMatcher(schema.category_types())
    mentions, remarks = matcher.evidence(texts), price_evidence(texts)
    count = Counter(code.tolist())
    ranked = [rank_types(mentions[code == c].sum(axis=0), count[c], prevalence()) for c in range(len(names))]
    truth = [metadata[name]["Cuisines"].split(", ") for name in names]
    scores = category_agreement([[matcher.types[t] for t in r] for r in ranked], truth, 11)
    assert not scores["uncovered"]
    for k in (3, 5, 11):
        at = scores[f"at_{k}"]
        assert at["extracted"][2] > at["baseline"][2] + 0.02 and at["in_use"][2] > at["baseline"][2] + 0.1
    tags = [price_tag(remarks[code == c].sum(axis=0)) for c in range(len(names))]
    prices = np.asarray([float(metadata[name]["Cost"].replace(",", "")) for name in names])
    scores = price_agreement(tags, prices)
    assert scores["spearman"] > 0.25 and scores["equal"] > scores["majority"]


def test_micro_scores_of_nothing():
    assert micro_scores([[]], [set()], 3) == [0.0, 0.0, 0.0]
