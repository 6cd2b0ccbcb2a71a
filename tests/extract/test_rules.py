"""Sentences, captions, price remarks and category words."""

from __future__ import annotations

import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec.extract.rules import lexicon
from dlrrec_torchrec.extract.rules.categories import TypeMatcher, rank_types
from dlrrec_torchrec.extract.rules.price import CHEAP, FAIR, OVER, price_evidence, price_tag
from dlrrec_torchrec.extract.rules.taste import AVOIDED, LIKED, PLACE, of_whom
from dlrrec_torchrec.extract.sentences import clean_caption, split_sentences
from dlrrec_torchrec.store.schema import category_types


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("Great food. Slow service!", ["Great food.", "Slow service!"]),
        ("Loved it.The staff was kind.", ["Loved it.", "The staff was kind."]),
        ("It was ok.but the service is bad", ["It was ok.", "but the service is bad"]),
        ("I rate it 4.5 out of 5. Go", ["I rate it 4.5 out of 5.", "Go"]),
        ("I give 4.5/5.Good!!Must try...really", ["I give 4.5/5.", "Good!!", "Must try...", "really"]),
        ("Worst ever!!!!Never again??No", ["Worst ever!!!!", "Never again??", "No"]),
        ("Wait ... what", ["Wait ...", "what"]),
        ("Yummy \U0001f60b\U0001f60b Will return", ["Yummy \U0001f60b\U0001f60b", "Will return"]),
        ("we \u2764 this place", ["we \u2764 this place"]),
        ("good. \U0001f44d \U0001f44d", ["good. \U0001f44d \U0001f44d"]),
        (
            "Mr. Rao paid Rs. 500 at eat.fit vs. home. Bye",
            ["Mr. Rao paid Rs. 500 at eat.fit vs. home.", "Bye"],
        ),
        ("See www.place.com or e.g. the U.S. style", ["See www.place.com or e.g. the U.S. style"]),
        ("1. Starters\n2. Main", ["1. Starters", "2. Main"]),
        (
            "Nuts overloaded,\nArabian nights,\nDry fruit",
            ["Nuts overloaded,", "Arabian nights,", "Dry fruit"],
        ),
        ("a line that was\nwrapped here. Next", ["a line that was wrapped here.", "Next"]),
        ('He said "great place!" And left.', ['He said "great place!"', "And left."]),
        ("\u597d\u5403\u3002\u5f88\u597d", ["\u597d\u5403\u3002", "\u5f88\u597d"]),
        ("!!! ... \U0001f600", []),
        (" \n\t ", []),
        ("", []),
        (None, []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(max_size=400), st.integers(1, 20))
def test_sentences_keep_every_letter_and_the_limit(text, limit):
    pieces = split_sentences(text, limit)
    assert all(0 < len(p.split()) <= limit and p == p.strip() for p in pieces)
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalnum()]
    assert [c for p in pieces for c in p if c.isalnum()] == letters


@pytest.mark.parametrize(
    "unit", ["a! ", "The food was good. ", "a.", '."', "\u597d\u5403\u3002", "aaaa-", "?!"]
)
def test_work_grows_with_the_text_and_not_with_its_square(unit):
    """100,000 characters in one line; the square took minutes, this takes a part of a second."""
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    split_sentences(text + "end")
    of_whom(text)
    assert time.process_time() - start < 5


def test_long_sentences_are_cut_evenly_after_a_comma():
    words = [f"w{i}," if i == 40 else f"w{i}" for i in range(100)]
    assert [len(p.split()) for p in split_sentences(" ".join(words))] == [41, 59]
    assert [len(p.split()) for p in split_sentences("word " * 121)] == [41, 40, 40]
    assert [len(p) for p in split_sentences("x" * 900, 1)] == [400, 400, 100]


@pytest.mark.parametrize(
    "caption, cleaned",
    [
        ("a photo of a plate of food", "a plate of food"),
        ("  An image of  noodles. ", "noodles"),
        ("This is a picture showing two cakes", "two cakes"),
        ("a close up of pizza", "pizza"),
        ("two people in a photo of the bar", "two people in a photo of the bar"),
        ("photographers at work", "photographers at work"),
        ("a photo of ", ""),
        (" . ", ""),
        (None, ""),
    ],
)
def test_captions(caption, cleaned):
    assert clean_caption(caption) == cleaned


@pytest.mark.parametrize(
    "text, column",
    [
        ("It is overpriced.", OVER),
        ("Not overpriced at all", FAIR),
        ("very expensive place", OVER),
        ("The place isn\u2019t too expensive", FAIR),
        ("a bit pricey", OVER),
        ("The prices are on the higher side", OVER),
        ("Not worth the money.", OVER),
        ("totally worth every penny", FAIR),
        ("Good value for money", FAIR),
        ("not bad, very reasonable rates", FAIR),
        ("Not bad and very reasonable", FAIR),
        ("Pocket friendly and tasty", CHEAP),
        ("affordable prices", CHEAP),
        ("cheap and best", CHEAP),
        ("not cheap", OVER),
        ("heavy on the pocket", OVER),
        ("easy on the pocket", CHEAP),
        ("prices are low", CHEAP),
        ("The food was not good but cheap", CHEAP),
        ("prices are decent", FAIR),
    ],
)
def test_price_remarks(text, column):
    evidence = price_evidence([text])[0]
    assert np.flatnonzero(evidence).tolist() == [column]


@pytest.mark.parametrize(
    "text", ["cheap quality meat", "worth a visit", "I rate it 1", "no reason to come", "nice food", None, ""]
)
def test_no_price_remark(text):
    assert not price_evidence([text]).any()


def test_degree_of_price_remarks():
    weak, plain, strong = price_evidence(["a bit costly", "costly", "way too costly"])[:, OVER]
    assert weak < plain < strong


@pytest.mark.parametrize(
    "evidence, tag",
    [
        ((0, 0, 0), "none"),
        ((1, 0, 0), "cheap"),
        ((0, 0, 1), "overpriced"),
        ((0, 1, 0), "fair"),
        ((5, 0, 5), "fair"),
        ((3, 1, 1), "cheap"),
        ((1, 8, 2), "fair"),
    ],
)
def test_price_tag(evidence, tag):
    assert price_tag(np.asarray(evidence, np.float32)) == tag


TYPES = category_types()
MATCHER = TypeMatcher(TYPES)


def found(text):
    row = MATCHER.evidence([text])[0]
    return {TYPES[i]: float(row[i]) for i in np.flatnonzero(row)}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_found_by_its_own_name(kind):
    assert found(f"The {kind.lower()} here is lovely").get(kind) == 1.0


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("We had momo and BARBEQUES", {"Momos", "BBQ"}),
        ("two burgers", {"Burger"}),
        ("Biriyani was tasty", {"Biryani"}),
        ("caf\u00e9", {"Cafe"}),
        ("north indian food", {"North Indian"}),
        ("great Tex-Mex", {"Tex-Mex"}),
        ("American corn", set()),
        ("a pub", {"Pub"}),
        ("publicity and thailand", set()),
        ("", set()),
        (None, set()),
    ],
)
def test_names_count_in_full(text, kinds):
    assert {kind for kind, weight in found(text).items() if weight == 1.0} == kinds


def test_dishes_count_in_part_and_add_up():
    assert found("idli")["South Indian"] == lexicon.DISH_WEIGHT
    assert found("idli, idlis and idli")["South Indian"] == lexicon.DISH_WEIGHT
    assert found("idli, dosa, vada and sambar")["South Indian"] == 1.0
    assert "French" not in found("french fries") and "Fast Food" in found("french fries")


def test_the_word_lists_name_known_types_only():
    listed = {*lexicon.NAMES, *lexicon.DISHES, *lexicon.PREVALENCE}
    listed |= {k.strip() for kinds in lexicon.PHRASES.values() for k in kinds.split(",") if k.strip()}
    assert listed <= set(TYPES)


def test_ranking_follows_the_formula_and_its_limit():
    mentions = np.asarray([6.0, 3.0, 1.0, 0.0, 1.0])
    prevalence = np.asarray([0.5, 0.02, 0.02, 0.02, 0.3])
    # shares (m + q) / 11: 0.591, 0.275, 0.093, -, 0.118; p log(p / q): 0.099, 0.720, 0.142, -, below 0
    assert rank_types(mentions, 10, prevalence).tolist() == [1, 2, 0]
    assert len(rank_types(np.ones(50), 2, np.full(50, 0.02))) == 50
    assert len(rank_types(np.zeros(50), 2, np.full(50, 0.02))) == 0


@pytest.mark.parametrize(
    ("sentence", "whom"),
    [
        ("I could eat ramen every day", LIKED),
        ("I'm a big fan of dim sum.", LIKED),
        ("We usually go for Thai", LIKED),
        ("My favorite cuisine is Ethiopian", LIKED),
        ("I always order biryani", LIKED),
        ("Give me a burger over anything else", LIKED),
        ("I\u2019m not a fan of sushi", AVOIDED),
        ("It isn't my cup of tea", AVOIDED),
        ("I've never liked liver", AVOIDED),
        ("I don't really eat meat", AVOIDED),
        ("Normally I avoid buffets, but this one is good", AVOIDED),
        ("my favourite dish was the ramen", PLACE),
        ("The biryani is to die for", PLACE),
        ("Their sushi was cold and I hated it", PLACE),
        ("We came for tacos and loved them", PLACE),
        ("I will always remember this pizza", PLACE),
        ("Kids are crazy about their pasta", PLACE),
        ("I prefer the dumplings at this place", PLACE),
        ("I always order the pizza here", PLACE),
        ("We could eat the whole pizza", PLACE),
        ("Better than anything I had; the pizza", PLACE),
        ("Not a fan of the waiter but the curry is great", PLACE),
        ("I never liked pizza until I ate here", PLACE),
        ("I am not a big fan of sushi but theirs is superb", PLACE),
        ("Being crazy about ramen we came here", LIKED),
        ("", PLACE),
    ],
)
def test_whom_a_sentence_speaks_of(sentence, whom):
    assert of_whom(sentence) == whom
