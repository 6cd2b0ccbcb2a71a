"""Menus, titles and review texts of the synthetic world.

A review's sentences describe dishes and service in words of its rating, prices in words of the restaurant's
level, and the types that the user likes or avoids; others are noise. In a quarter of the sentences the rating
or level is one step off, so no sentence is certain evidence.

Two sentences in five are on taste, two pictures in five of a dish that the guest likes, on the menu or not.
These shares are the least that were tried with which, on several worlds, the mean vector of a user's text
(all-MiniLM-L6-v2) tells the user's cluster as well as the visited restaurants' families do, and the mean
vector of the captions as well as the visits of the same reviews; docs/results.md has the figures. It is not
made easy beyond that: texts speak of eight favourite types, not of one for all users of a cluster, and a
fifth of the sentences on taste name what is avoided, which a vector can hardly tell from what is liked.
"""

from __future__ import annotations

import numpy as np

from dlrrec_torchrec.ingest.synthetic.words import (
    COLOURS,
    DAYS,
    DISH,
    DISHES,
    DISLIKES,
    FAMILY_TYPES,
    FOOD_WORDS,
    KIND,
    LIKES,
    NOISE,
    OPENERS,
    PLACE,
    PRICE,
    SERVICE_WORDS,
    TIMES,
    TITLE_FIRST,
    TITLE_SECOND,
    VERDICTS,
)
from dlrrec_torchrec.store.schema import category_types

SHARE_WITHOUT_TEXT = 0.08
LENGTHS = (0.2, 0.3, 0.27, 0.15, 0.08)  # shares of texts with 1, 2, ... 5 sentences
COSTS = (8, 18, 35, 70)  # of a meal, by price level, in currency units
KINDS = {
    "dish": 0.23,
    "kind": 0.1,
    "taste": 0.4,
    "place": 0.06,
    "price": 0.08,
    "verdict": 0.06,
    "noise": 0.07,
}
FAVOURITES = 8  # types that a user says to like, and as many that he or she avoids
SHARE_OF_LIKES = 0.8  # of the sentences on taste; the others say what is avoided

TYPE_NAMES = category_types()
_DISHES = [(dish, vessel, family) for family, dishes in DISHES.items() for dish, vessel in dishes]
DISH_NAMES = [dish for dish, _, _ in _DISHES]
DISH_VESSELS = [vessel for _, vessel, _ in _DISHES]


def _type_dishes() -> list[list[int]]:
    """The dishes of each type: those with its name, else all of its family."""
    dishes = []
    for name in TYPE_NAMES:
        family = next(f for f, types in FAMILY_TYPES.items() if name in types)
        family_dishes = [d for d, (_, _, of) in enumerate(_DISHES) if of == family]
        named_dishes = [d for d in family_dishes if name.lower().rstrip("s") in DISH_NAMES[d]]
        dishes.append(named_dishes or family_dishes)
    return dishes


TYPE_DISHES = _type_dishes()


def make_menus(rng: np.random.Generator, types: list[np.ndarray]) -> list[list[int]]:
    """Distinct dish codes (into DISH_NAMES) for each item: two draws for each type and one of all dishes."""
    menus = []
    for codes in types:
        draws = rng.random(2 * len(codes) + 1)
        dishes = [_pick(TYPE_DISHES[code], u) for code, u in zip(np.repeat(codes, 2), draws, strict=False)]
        neighbour = (dishes[0] + 1 + int(draws[-1] * (len(DISH_NAMES) - 1))) % len(DISH_NAMES)
        menus.append(list(dict.fromkeys([*dishes, neighbour])))
    return menus


def make_titles(rng: np.random.Generator, types: list[np.ndarray]) -> list[str]:
    """An invented name for each item; half of them include the main type."""
    titles = []
    for codes, (first, second, says) in zip(types, rng.random((len(types), 3)), strict=True):
        words = [_pick(TITLE_FIRST, first), _pick(TITLE_SECOND, second)]
        titles.append(" ".join(words + [TYPE_NAMES[codes[0]]] * bool(says < 0.5)))
    return titles


def make_prices(rng: np.random.Generator, level: np.ndarray) -> np.ndarray:
    """Currency units for a meal, f32 [I], whole numbers around the cost of each item's level [I]."""
    return np.round(np.asarray(COSTS)[level] * rng.uniform(0.8, 1.25, len(level))).astype(np.float32)


def compose(
    rng: np.random.Generator,
    user: np.ndarray,
    item: np.ndarray,
    rating: np.ndarray,
    *,
    taste: np.ndarray,
    sensitivity: np.ndarray,
    types: list[np.ndarray],
    menus: list[list[int]],
    price_level: np.ndarray,
    price: np.ndarray,
) -> tuple[list[str | None], list[list[int]], list[list[int]]]:
    """The text of each of R reviews (user, item, rating: i64 [R]), None for those without words; the types
    that it says to like, and those that it says to avoid.

    taste [U, T] and sensitivity [U] are the users'; types, menus (lists of I), price_level [I] and price [I]
    the items'. Users who are sensitive to prices mention them more often.
    """
    reviews, longest = len(user), len(LENGTHS)
    liked, avoided = favourites(taste), favourites(-taste)
    length = 1 + rng.choice(longest, reviews, p=LENGTHS)
    length[rng.random(reviews) < SHARE_WITHOUT_TEXT] = 0
    kinds = rng.choice(list(KINDS), (reviews, longest), p=list(KINDS.values()))
    minds = (sensitivity[user] > 1)[:, None] & (rng.random((reviews, longest)) < 0.2)
    kinds[minds] = "price"
    shift = rng.choice((-1, 0, 1), (reviews, longest, 2), p=(0.125, 0.75, 0.125))
    heard_rating = np.clip(rating[:, None] + shift[..., 0], 1, 5)
    heard_level = np.clip(price_level[item][:, None] + shift[..., 1], 0, 3)
    chance = rng.random((reviews, longest, 8))

    texts: list[str | None] = []
    likes: list[list[int]] = []
    avoids: list[list[int]] = []
    for r in range(reviews):
        sentences = [
            sentence(
                kinds[r, s],
                chance[r, s].tolist(),
                rating=int(heard_rating[r, s]),
                price_level=int(heard_level[r, s]),
                price=float(price[item[r]]),
                menu=menus[item[r]],
                types=types[item[r]],
                liked=liked[user[r]],
                avoided=avoided[user[r]],
            )
            for s in range(length[r])
        ]
        texts.append(" ".join(dict.fromkeys(sentences)) or None)
        tastes = [
            stated_taste(chance[r, s].tolist(), liked[user[r]], avoided[user[r]])
            for s in range(length[r])
            if kinds[r, s] == "taste"
        ]
        likes.append([code for like, code in tastes if like])
        avoids.append([code for like, code in tastes if not like])
    return texts, likes, avoids


def favourites(taste: np.ndarray) -> np.ndarray:
    """The types that each user likes most, best first: i64 [U, FAVOURITES] of the likings [U, T]."""
    return np.argsort(taste, axis=1)[:, : -FAVOURITES - 1 : -1]


def stated_taste(chance: list[float], liked: np.ndarray, avoided: np.ndarray) -> tuple[bool, int]:
    """Of a sentence on taste: whether it is of liking, and the type that it speaks of."""
    likes = chance[7] < SHARE_OF_LIKES
    return likes, int(_pick(liked if likes else avoided, chance[1]))


def sentence(
    kind: str,
    chance: list[float],
    *,
    rating: int,
    price_level: int,
    price: float,
    menu: list[int],
    types: np.ndarray,
    liked: np.ndarray,
    avoided: np.ndarray,
) -> str:
    """One sentence of a kind out of KINDS. The eight numbers of `chance`, in [0, 1), make every choice."""
    a, b, c, d, e, f, g, h = chance
    values: dict[str, object] = {}
    if kind == "dish":
        template, words = _pick(DISH, a), FOOD_WORDS[rating - 1]
        at = int(b * len(menu))
        other = menu[(at + 1 + int(c * (len(menu) - 1))) % len(menu)]
        values = {
            "dish": DISH_NAMES[menu[at]],
            "dish2": DISH_NAMES[other],
            "word": _pick(words, d),
            "word2": _pick(words, e),
        }
    elif kind == "kind":
        template, words = _pick(KIND, a), FOOD_WORDS[rating - 1]
        values = {"type": TYPE_NAMES[_pick(types, b)], "word": _pick(words, c)}
    elif kind == "taste":
        likes, code = stated_taste(chance, liked, avoided)
        template = _pick(LIKES if likes else DISLIKES, a)
        values = {"type": TYPE_NAMES[code], "dish": DISH_NAMES[_pick(TYPE_DISHES[code], c)]}
    elif kind == "place":
        template = _pick(PLACE, a)
        values = {"word": _pick(SERVICE_WORDS[rating - 1], b)}
    elif kind == "price":
        template = _pick(PRICE[price_level], a)
        values = {"cost": f"{5 * max(1, round(price / 5))} dollars"}
    elif kind == "verdict":
        template = _pick(VERDICTS[rating - 1], a)
    else:
        template = _pick(NOISE, a)
    values |= {
        "day": _pick(DAYS, e),
        "time": _pick(TIMES, f),
        "colour": _pick(COLOURS, f),
        "count": 2 + int(6 * f),
    }
    opener = _pick(OPENERS, g)
    text = opener + _lowered(template.format(**values), opener)
    return text[0].upper() + text[1:] + ("!" if h > 0.85 else ".")


def _lowered(text: str, opener: str) -> str:
    """`text` after an opener: its first letter in lower case unless it is a name or "I"."""
    word = text.split(" ", 1)[0]
    keep = not opener or word == "I" or any(name.split(" ", 1)[0] == word for name in TYPE_NAMES)
    return text if keep else text[0].lower() + text[1:]


def _pick(options, chance: float):
    return options[int(chance * len(options))]
