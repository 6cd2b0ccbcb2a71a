"""Parameters of SWING and the published variants as presets; the other similarities of the same lists.

One formula covers the variants. For items i ≠ j (for users the roles swap):

    s(i, j) = Σ_{u < v ∈ U_i ∩ U_j}  w_u · w_v / (alpha + |I_u ∩ I_v| - [count_anchor is off])
    w_u     = (user_alpha + |I_u|) ^ -user_beta

U_i are the users of item i and I_u the items of user u. Each unordered pair of users counts once. The limits
make a smaller graph first, and every quantity of the formula is taken on that graph. (Flink and PAI sample an
item's users only while that item is compared; here the other edges are removed, so that s(i, j) = s(j, i).)

By hand: users a, b, c and d have {x, y, z}, {x, y}, {x, y, w} and {x, z}. The pairs ab, ac and bc link x to y
and share 2 items each; ad links x to z and shares 2; no pair links x to w.

>>> import polars as pl, swing
>>> graph = pl.DataFrame({"user_id": list("aaabbcccdd"), "item_id": list("xyzxyxywxz")})
>>> def of_x(config):
...     lists = swing.similar(graph, config).row(by_predicate=pl.col("id") == "x", named=True)
...     return {j: round(s, 4) for j, s in zip(lists["neighbors"], lists["scores"])}

dlrrec: y has 3 pairs of 1 / (1 + 2), z has one.

>>> of_x(preset("dlrrec"))
{'y': 1.0, 'z': 0.3333}

flink: w is 18^-0.3 = 0.4202 for a and c, 17^-0.3 = 0.4274 for b and d. y: (w_a w_b + w_a w_c + w_b w_c) / 2 =
(0.1796 + 0.1765 + 0.1796) / 2; z: 0.1796 / 2. (Its minimum of 10 items a user is lifted here.)

>>> of_x(preset("flink", min_user_items=2))
{'y': 0.2679, 'z': 0.0898}

pai: w is 8^0.35 = 2.0705 for a and c, 7^0.35 = 1.9760 for b and d. y: (2 · 4.0914 + 4.2871) / 3.

>>> of_x(preset("pai", min_user_items=2))
{'y': 4.1566, 'z': 1.3638}

recfarm: w is 1/√3 for a and c, 1/√2 for b and d; one item besides x is shared. y: (2 / √6 + 1/3) / (1 + 1).

>>> of_x(preset("recfarm"))
{'y': 0.5749, 'z': 0.2041}

The other similarities need one user in common, on the same graph, under the same limits. |U_i| counts the
users that the limits left: with `min_user_items=1` users with a single item count too.

    common       |U_i ∩ U_j|                         Newman, Phys. Rev. E 64 (2001)
    cosine       |U_i ∩ U_j| / √(|U_i| · |U_j|)      Salton & McGill, Modern Information Retrieval (1983)
    jaccard      |U_i ∩ U_j| / |U_i ∪ U_j|           Jaccard, Bull. Soc. Vaud. Sci. Nat. 37 (1901)
    adamic_adar  Σ_{u ∈ U_i ∩ U_j} 1 / ln |I_u|      Adamic & Adar, Social Networks 25 (2003)

By hand: U_x, U_y, U_z and U_w are abcd, abc, ad and c. So x shares 3, 2 and 1 users with y, z and w; cosine
divides by √12, √8 and √4, jaccard by 4 each; 1 / ln |I_u| is 0.9102 for a and c, 1.4427 for b and d.

>>> of_x(preset(similarity="common"))
{'y': 3.0, 'z': 2.0, 'w': 1.0}
>>> of_x(preset(similarity="cosine"))
{'y': 0.866, 'z': 0.7071, 'w': 0.5}
>>> of_x(preset(similarity="jaccard"))
{'y': 0.75, 'z': 0.5, 'w': 0.25}
>>> of_x(preset(similarity="adamic_adar"))
{'y': 3.2632, 'z': 2.3529, 'w': 0.9102}
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

SIMILARITIES = ("swing", "cosine", "jaccard", "common", "adamic_adar")
LIMITS = ("max_user_items", "sample_user_items", "max_item_users")  # None: no limit
SWING_ONLY = ("alpha", "user_alpha", "user_beta", "count_anchor")  # meaningless for the other similarities


class SwingError(Exception):
    """Input or parameters that cannot be used. The message names them and says what to do."""


@dataclasses.dataclass(frozen=True)
class SwingConfig:
    """Parameters of one run. `user` means the side that links, `item` the side that is compared.

    For `side="users"` the roles swap: there `min_user_items=2` ignores items with a single user, and
    `max_item_users` bounds the items of a user. Raises SwingError for a value out of range, and for one of
    SWING's own parameters (alpha, user_alpha, user_beta, count_anchor) away from its default while
    `similarity` is another.
    """

    similarity: str = "swing"  # one of SIMILARITIES
    alpha: float = 1.0  # smoothing in the denominator
    user_alpha: float = 0.0  # smoothing of the activity in the user weight
    user_beta: float = 0.0  # exponent of the user weight; 0: every user weighs 1
    count_anchor: bool = True  # whether the overlap of two users counts the item they are compared for
    normalize: bool = False  # divide the scores of an id by its best one
    top_k: int = 100  # neighbours kept for each id
    min_user_items: int = 2  # ignore users with fewer items
    max_user_items: int | None = None  # ignore users with more items
    sample_user_items: int | None = None  # sample this many items of a user who has more
    max_item_users: int | None = 1000  # sample this many users of an item that has more
    seed: int = 0  # of both samples

    def __post_init__(self):
        if self.similarity not in SIMILARITIES:
            raise SwingError(f"unknown similarity '{self.similarity}'{_hint(self.similarity, SIMILARITIES)}")
        for name in ("alpha", "user_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SwingError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not abs(self.user_beta) < float("inf"):
            raise SwingError(f"user_beta must be finite, not {self.user_beta}")
        minimum = {"top_k": 1, "min_user_items": 1, "seed": 0}
        for name in ("top_k", "min_user_items", "seed", *LIMITS):
            value = getattr(self, name)
            if value is not None and value < minimum.get(name, 2):
                raise SwingError(f"{name} must be {minimum.get(name, 2)} or more, not {value}")
        if self.max_user_items is not None and self.max_user_items < self.min_user_items:
            raise SwingError(
                f"max_user_items ({self.max_user_items}) is less than min_user_items ({self.min_user_items})"
            )
        for name in SWING_ONLY if self.similarity != "swing" else ():
            if getattr(self, name) != getattr(SwingConfig, name):
                raise SwingError(
                    f"{name} is a parameter of SWING and has no meaning for similarity '{self.similarity}': "
                    "leave it out"
                )


PRESETS: dict[str, SwingConfig] = {
    # DLRREC: 1 / (1 + |I_u ∩ I_v|), as in Yang, Zhu, Zhang: "Large Scale Product Graph Construction for
    # Recommendation in E-commerce" (arXiv 2010.05525).
    "dlrrec": SwingConfig(),
    # Apache Flink ML, operator Swing: alpha1 = 15 and beta = 0.3 weigh the users, alpha2 = 0 smooths the
    # overlap. Its code leaves out the first user of each item; its documented formula and this one do not.
    "flink": SwingConfig(alpha=0.0, user_alpha=15.0, user_beta=0.3, min_user_items=10, max_user_items=1000),
    # Alibaba PAI, component "swing train", and its open source, Alink: w_u = 1 / (userAlpha + |I_u|)^userBeta
    # with userBeta = -0.35. As documented the weight grows with activity; user_beta=0.35 makes it fall.
    "pai": SwingConfig(user_alpha=5.0, user_beta=-0.35, min_user_items=10, max_user_items=1000),
    # LibRecommender's recfarm: w_u = |I_u|^-1/2, the target item is not counted, no limits.
    "recfarm": SwingConfig(user_beta=0.5, count_anchor=False, min_user_items=1, max_item_users=None),
}


def preset(name: str = "dlrrec", **changes: Any) -> SwingConfig:
    """The variant `name` with `changes`: None keeps the preset's value, 0 lifts a limit.

    With another `similarity` than SWING the preset gives its limits only.
    Raises SwingError for an unknown preset or parameter, and for values that SwingConfig refuses.
    """
    if name not in PRESETS:
        raise SwingError(f"unknown preset '{name}'{_hint(name, PRESETS)}")
    known = {field.name for field in dataclasses.fields(SwingConfig)}
    for key in changes:
        if key not in known:
            raise SwingError(f"unknown parameter '{key}'{_hint(key, known)}")
    changed = {k: v for k, v in changes.items() if v is not None}
    lifted = {k: None for k in LIMITS if changed.get(k) == 0}
    without_formula = changed.get("similarity", "swing") != "swing"
    defaults = {k: getattr(SwingConfig, k) for k in SWING_ONLY if without_formula}
    return dataclasses.replace(PRESETS[name], **(defaults | changed | lifted))


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(sorted(known))})"
