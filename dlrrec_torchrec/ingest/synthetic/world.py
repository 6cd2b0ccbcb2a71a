"""The hidden truth of the synthetic world: tastes, restaurants, visits, probabilities and ratings.

log-odds of a positive review = bias + affinity(user, item) + quality(item) + leniency(user) - price term,
where the affinity is a bilinear form of the user's liking of types and the item's types, and the price term
is the user's sensitivity times the item's price level. Both depend on user *and* item, not only on their
means.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from dlrrec_torchrec.ingest.synthetic.words import FAMILIES, FAMILY_TYPES
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.schema import category_types

# size -> reviews, users, items; "paper" has the counts of DLRREC's filtered data (57,005 + 17,402 reviews)
SIZES = {"tiny": (600, 150, 60), "small": (8_000, 600, 250), "paper": (74_407, 28_912, 15_290)}
MOST_TYPES = 11  # of an item, as the papers extract
TASTE_CLUSTERS = 4
POSITIVE_RATE = 7 / 8
FAMILY_SD = 0.2  # of a user's liking of a family around its cluster's
TYPE_SD = 0.2  # of a cluster's liking of a type around that of its family
VISIT = 4.5  # log-odds of visiting a family per unit of liking
SENSITIVITY = 0.4  # to prices, mean of the users'; their standard deviation is 1
EXPLORE = 0.4  # share of visits that ignore taste
PRICE_SHARES = (0.3, 0.4, 0.2, 0.1)  # of the price levels, cheap to expensive
EPOCH = 1_514_764_800  # 2018-01-01, seconds
SPAN = 4 * 365 * 86_400  # seconds from the first review to the last
# What the log-odds above their mean, and chance, must exceed for these ratings.
FIVE, THREE, TWO = -0.4, -1.2, -2.8
# Standard deviation of each part of the log-odds, over the reviews.
WEIGHTS = {"affinity": 2.0, "quality": 0.7, "leniency": 0.6, "price": 0.6}


@dataclasses.dataclass
class World:
    """U users, I items, R reviews in the order of time; T types, F families."""

    taste: np.ndarray  # f64 [U, T] liking of each type
    cluster: np.ndarray  # i64 [U] taste cluster
    sensitivity: np.ndarray  # f64 [U] dislike of high prices
    types: list[np.ndarray]  # I arrays of type codes, main type first
    family: np.ndarray  # i64 [I] family of the main type
    price_level: np.ndarray  # i64 [I] 0 (cheap) to 3 (expensive)
    user: np.ndarray  # i64 [R]
    item: np.ndarray  # i64 [R]
    probability: np.ndarray  # f64 [R] of a positive review
    means: np.ndarray  # f64 [R] log-odds with only the user's and the item's mean over the other side
    rating: np.ndarray  # i64 [R] 1 to 5; positive from 4
    timestamp: np.ndarray  # i64 [R] seconds
    law: Law


@dataclasses.dataclass(frozen=True)
class Law:
    """What the log-odds are made of, without what is drawn for each user and item: K clusters.

    logit(u, i) = bias + affinity_of_cluster[k, i] + deviation_weight * share[i] . d_u
                  + quality_sd * q_i + leniency_sd * l_u + price_effect[i] * s_u
    with user u of cluster k and, for every user and item, unknown d_u [F], q_i, l_u, s_u of mean 0 and
    variance 1. A user chooses family f with probability (1 - explore) softmax(visit_of_cluster[k] +
    visit_weight * d_u)[f] + explore / F. Arrays are f64 unless they say otherwise.
    """

    affinity_of_cluster: np.ndarray  # [K, I] log-odds
    price_effect: np.ndarray  # [I] log-odds for one unit of sensitivity
    family_share: np.ndarray  # [I, F] of the item's types
    family: np.ndarray  # i64 [I] family of the main type
    visit_of_cluster: np.ndarray  # [K, F] log-odds of choosing a family
    taste_of_cluster: np.ndarray  # [K, T] liking of each type
    type_family: np.ndarray  # i64 [T]
    bias: float
    mean_logit: float  # over the reviews
    deviation_weight: float
    deviation_sd: float  # of d_u in units of liking
    visit_weight: float
    explore: float
    quality_sd: float
    leniency_sd: float

    def write(self, path: str | os.PathLike, item_id: list[str]) -> None:
        """Write the law and the items' ids, in the arrays' order."""
        np.savez_compressed(path, item_id=np.asarray(item_id, np.str_), **dataclasses.asdict(self))

    @staticmethod
    def read(path: str | os.PathLike) -> tuple[Law, list[str]]:
        """The law and its items' ids."""
        with np.load(path) as stored:
            values = {name: v if v.ndim else v.item() for name, v in stored.items()}
        return Law(**{n: v for n, v in values.items() if n != "item_id"}), values["item_id"].tolist()


def make_world(size: str | tuple[int, int, int], seed: int) -> World:
    """The world of a size, or of numbers of reviews, users and items, and a seed.

    Raises DataError for an unknown size, a negative seed, and more reviews than users and items allow.
    """
    if isinstance(size, str) and size not in SIZES:
        raise DataError(f"ingest.size: {size!r} is not one of {', '.join(SIZES)}")
    if seed < 0:
        raise DataError(f"ingest.seed: {seed} must be at least 0")
    reviews, users, items = SIZES[size] if isinstance(size, str) else size
    rng = np.random.default_rng(seed)
    type_family = _type_families()

    cluster, taste, visit, loved, liking = _tastes(rng, users, type_family)
    popularity = rng.permutation(items)  # rank of each item
    family = _balanced_families(rng, popularity)
    types = _item_types(rng, family, type_family)
    profile = np.zeros((items, len(category_types())))
    for row, codes in zip(profile, types, strict=True):
        row[codes] = 1 / len(codes)
    level = rng.choice(len(PRICE_SHARES), items, p=PRICE_SHARES)
    quality = rng.standard_normal(items) - 0.4 * _standard(np.log(popularity + 10))
    sensitivity = SENSITIVITY + rng.standard_normal(users)
    leniency = rng.standard_normal(users)

    user_degree = degrees(rng, reviews, rng.permutation(users), shift=20)
    item_degree = degrees(rng, reviews, popularity, shift=10)
    if user_degree.max() > 0.9 * items or item_degree.max() > 0.9 * users:
        raise DataError(f"a world of {reviews:,} reviews needs more than {users:,} users and {items:,} items")
    user, item = visits(rng, user_degree, item_degree, visit, family)
    time = rng.integers(EPOCH, EPOCH + SPAN, reviews)
    order = np.lexsort((item, user, time))
    user, item, time = user[order], item[order], time[order]

    affinity = Bilinear(taste, profile)
    price = Bilinear(-sensitivity[:, None], (level - level.mean())[:, None])
    logit, means = np.zeros(reviews), np.zeros(reviews)
    moments = []
    for part, weight in ((affinity, WEIGHTS["affinity"]), (price, WEIGHTS["price"])):
        full = part.pairs(user, item)
        moments.append((full.mean(), full.std()))
        logit += weight * _standard(full)
        means += weight / full.std() * part.main_effects(user, item)
    for part, weight in ((quality[item], WEIGHTS["quality"]), (leniency[user], WEIGHTS["leniency"])):
        logit += weight * _standard(part)
        means += weight * _standard(part)
    bias = _bias(logit, POSITIVE_RATE)
    logit += bias
    (affinity_mean, affinity_sd), (price_mean, price_sd) = moments
    price_effect = -WEIGHTS["price"] / price_sd * (level - level.mean())
    law = Law(
        affinity_of_cluster=WEIGHTS["affinity"] / affinity_sd * (liking @ profile.T - affinity_mean)
        + SENSITIVITY * price_effect,
        price_effect=price_effect,
        family_share=profile @ np.eye(len(FAMILIES))[type_family],
        family=family,
        visit_of_cluster=VISIT * loved,
        taste_of_cluster=liking,
        type_family=type_family,
        bias=bias - WEIGHTS["price"] / price_sd * price_mean,
        mean_logit=float(logit.mean()),
        deviation_weight=WEIGHTS["affinity"] / affinity_sd * FAMILY_SD,
        deviation_sd=FAMILY_SD,
        visit_weight=VISIT * FAMILY_SD,
        explore=EXPLORE,
        quality_sd=WEIGHTS["quality"],
        leniency_sd=WEIGHTS["leniency"],
    )
    probability = 1 / (1 + np.exp(-logit))
    return World(
        taste=taste,
        cluster=cluster,
        sensitivity=sensitivity,
        types=types,
        family=family,
        price_level=level,
        user=user,
        item=item,
        probability=probability,
        means=means,
        rating=_ratings(rng, logit, rng.random(reviews) < probability),
        timestamp=time,
        law=law,
    )


@dataclasses.dataclass
class Bilinear:
    """left[u] . right[i] for users' factors [U, K] and items' factors [I, K]."""

    left: np.ndarray
    right: np.ndarray

    def pairs(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """The value of each pair, f64 [R]."""
        return np.einsum("rk,rk->r", self.left[user], self.right[item])

    def main_effects(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """The mean of each pair's user over all items plus that of its item over all users, f64 [R]."""
        return (self.left @ self.right.mean(0))[user] + (self.right @ self.left.mean(0))[item]


def degrees(rng: np.random.Generator, total: int, rank: np.ndarray, shift: float) -> np.ndarray:
    """Numbers of reviews, i64, at least 2 each and `total` together, with a Zipf-like tail by `rank`."""
    weight = (rank + 1.0 + shift) ** -0.8
    return 2 + rng.multinomial(total - 2 * len(rank), weight / weight.sum())


def visits(
    rng: np.random.Generator,
    user_degree: np.ndarray,
    item_degree: np.ndarray,
    visit: np.ndarray,
    family: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item) pairs with exactly these degrees, users choosing families by `visit` [U, F].

    Each visit of a user draws a family; visits and places are matched at random within each family, and the
    rest (of a family drawn more or less often than it has places) across families.
    """
    user = np.repeat(np.arange(len(user_degree)), user_degree)
    item = rng.permutation(np.repeat(np.arange(len(item_degree)), item_degree))
    user = rng.permutation(user)
    chosen_family = (
        (visit.cumsum(1)[user] < rng.random(len(user))[:, None]).sum(1).clip(max=visit.shape[1] - 1)
    )
    offered = family[item]
    paired_users, paired_items, spare_users, spare_items = [], [], [], []
    for f in range(visit.shape[1]):
        guests, places = user[chosen_family == f], item[offered == f]
        n = min(len(guests), len(places))
        paired_users.append(guests[:n])
        paired_items.append(places[:n])
        spare_users.append(guests[n:])
        spare_items.append(places[n:])
    user = np.concatenate([*paired_users, rng.permutation(np.concatenate(spare_users))])
    item = np.concatenate([*paired_items, *spare_items])
    return user, _without_repeats(rng, user, item)


def _without_repeats(rng: np.random.Generator, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """`item` with places swapped between rows until no (user, item) pair occurs twice."""
    users, items = user.tolist(), item.tolist()
    seen, repeated = set(), []
    for row, pair in enumerate(zip(users, items, strict=True)):
        if pair in seen:
            repeated.append(row)
        seen.add(pair)
    open_rows = set(repeated)
    for row in repeated:
        while True:
            other = int(rng.integers(len(users)))
            new_pair, other_new_pair = (users[row], items[other]), (users[other], items[row])
            if other not in open_rows and new_pair not in seen and other_new_pair not in seen:
                break
        seen.remove((users[other], items[other]))
        seen |= {new_pair, other_new_pair}
        open_rows.remove(row)
        items[row], items[other] = items[other], items[row]
    return np.asarray(items)


def _type_families() -> np.ndarray:
    """The family of each type, i64 [T]."""
    of = {name: f for f, family in enumerate(FAMILIES) for name in FAMILY_TYPES[family]}
    return np.asarray([of[name] for name in category_types()])


def _tastes(
    rng: np.random.Generator, users: int, type_family: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cluster [U], liking of types [U, T] and probability of choosing a family [U, F] of every user; the
    families that each cluster loves [K, F] (0 or 1) and its liking of types [K, T].

    Each taste cluster loves four families and has its own liking of each type; a user deviates from its
    cluster by family. Every family is loved by the same number of clusters, so none is good or bad for all.
    """
    families = len(FAMILIES)
    loved = np.zeros((TASTE_CLUSTERS, families))
    for first in range(0, TASTE_CLUSTERS, families // 4):
        for n, four in enumerate(rng.permutation(families).reshape(-1, 4)):
            loved[first + n, four] = 1
    by_type = TYPE_SD * rng.standard_normal((TASTE_CLUSTERS, len(category_types())))
    cluster = rng.integers(TASTE_CLUSTERS, size=users)
    by_family = loved[cluster] + FAMILY_SD * rng.standard_normal((users, families))
    visit = np.exp(VISIT * by_family)
    visit = (1 - EXPLORE) * visit / visit.sum(1, keepdims=True) + EXPLORE / families
    taste = by_family[:, type_family] + by_type[cluster]
    return cluster, taste, visit, loved, loved[:, type_family] + by_type


def _balanced_families(rng: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """The main family of each item, i64 [I], each family with an equal share of popular items, so that there
    are enough places of the families that guests like."""
    rounds = -(-len(popularity) // len(FAMILIES))
    return np.concatenate([rng.permutation(len(FAMILIES)) for _ in range(rounds)])[popularity]


def _item_types(rng: np.random.Generator, family: np.ndarray, type_family: np.ndarray) -> list[np.ndarray]:
    """Distinct type codes of every item, main type first, three in four of the item's own family."""
    items = len(family)
    count = 1 + rng.binomial(4, 0.4, items) + rng.poisson(0.1, items)
    own_family = rng.random((items, MOST_TYPES)) < 0.75
    own_family[:, 0] = True
    weight = [1 / (1.0 + np.arange((type_family == f).sum())) ** 0.5 for f in range(len(FAMILIES))]
    codes = [np.flatnonzero(type_family == f) for f in range(len(FAMILIES))]
    types = []
    for i in range(items):
        drawn_codes = [
            int(rng.choice(codes[f], p=weight[f] / weight[f].sum()))
            for f in np.where(
                own_family[i, : count[i]], family[i], rng.integers(len(FAMILIES), size=count[i])
            )
        ]
        types.append(np.asarray(list(dict.fromkeys(drawn_codes))))
    return types


def _ratings(rng: np.random.Generator, logit: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Ratings 1 to 5: 4 or 5 where positive; higher for a higher log-odds."""
    surprise = logit - logit.mean() + rng.logistic(size=len(logit))
    liked = np.where(surprise > FIVE, 5, 4)
    disliked = np.where(surprise > THREE, 3, np.where(surprise > TWO, 2, 1))
    return np.where(positive, liked, disliked)


def _bias(logit: np.ndarray, rate: float) -> float:
    """The constant that makes the mean probability `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        too_high = (1 / (1 + np.exp(-(logit + middle)))).mean() > rate
        low, high = (low, middle) if too_high else (middle, high)
    return (low + high) / 2


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
