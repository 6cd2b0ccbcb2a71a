"""Parameters of SWING and the published variants as presets.

One formula covers them. For items i ≠ j (for users the roles swap):

    s(i, j) = Σ_{u < v ∈ U_i ∩ U_j}  w_u · w_v / (alpha + |I_u ∩ I_v| - [count_anchor is off])
    w_u     = (user_alpha + |I_u|) ^ -user_beta

U_i are the users of item i and I_u the items of user u. Each unordered pair of users counts once. The limits
make a smaller graph first, and every quantity of the formula is taken on that graph. (Flink and PAI sample an
item's users only while that item is compared; here the other edges are gone, so that s(i, j) = s(j, i).)
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

LIMITS = ("max_user_items", "sample_user_items", "max_item_users")  # None: no limit


class SwingError(Exception):
    """Input or parameters that cannot be used. The message names them, and the way out."""


@dataclasses.dataclass(frozen=True)
class SwingConfig:
    """Parameters of one run. `user` means the side that links, `item` the side that is compared.

    For `side="users"` the roles swap: there `min_user_items=2` ignores items with a single user, and
    `max_item_users` bounds the items of a user. Raises SwingError for a value out of range.
    """

    alpha: float = 1.0  # smoothing in the denominator
    user_alpha: float = 0.0  # smoothing of the activity in the user weight
    user_beta: float = 0.0  # exponent of the user weight; 0: every user weighs 1
    count_anchor: bool = True  # whether the overlap of two users counts the item they are compared for
    normalize: bool = False  # divide the scores of an id by its best one
    top_k: int = 100  # neighbours kept for each id
    min_user_items: int = 2  # ignore users with fewer items
    max_user_items: int | None = None  # ignore users with more items
    sample_user_items: int | None = None  # sample so many items of a user who has more
    max_item_users: int | None = 1000  # sample so many users of an item that has more
    seed: int = 0  # of both samples

    def __post_init__(self):
        for name in ("alpha", "user_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SwingError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not abs(self.user_beta) < float("inf"):
            raise SwingError(f"user_beta must be finite, not {self.user_beta}")
        least = {"top_k": 1, "min_user_items": 1, "seed": 0}
        for name in ("top_k", "min_user_items", "seed", *LIMITS):
            value = getattr(self, name)
            if value is not None and value < least.get(name, 2):
                raise SwingError(f"{name} must be {least.get(name, 2)} or more, not {value}")
        if self.max_user_items is not None and self.max_user_items < self.min_user_items:
            raise SwingError(
                f"max_user_items ({self.max_user_items}) is less than min_user_items ({self.min_user_items})"
            )


PRESETS: dict[str, SwingConfig] = {
    # DLRREC: 1 / (1 + |I_u ∩ I_v|), as in Yang, Zhu, Zhang: "Large Scale Product Graph Construction for
    # Recommendation in E-commerce" (arXiv 2010.05525).
    "dlrrec": SwingConfig(),
    # Apache Flink ML, operator Swing: alpha1 = 15 and beta = 0.3 weigh the users, alpha2 = 0 smooths the
    # overlap. Its code leaves out the first user of each item, its documented formula does not, nor do we.
    "flink": SwingConfig(alpha=0.0, user_alpha=15.0, user_beta=0.3, min_user_items=10, max_user_items=1000),
    # Alibaba PAI, component "swing train", and its open source, Alink: w_u = 1 / (userAlpha + |I_u|)^userBeta
    # with userBeta = -0.35. As documented the weight thus grows with activity; user_beta=0.35 turns it round.
    "pai": SwingConfig(user_alpha=5.0, user_beta=-0.35, min_user_items=10, max_user_items=1000),
    # LibRecommender's recfarm: w_u = |I_u|^-1/2, the target item is not counted, no limits.
    "recfarm": SwingConfig(user_beta=0.5, count_anchor=False, min_user_items=1, max_item_users=None),
}


def preset(name: str = "dlrrec", **changes: Any) -> SwingConfig:
    """The variant `name` with `changes` laid over it: None keeps the preset's value, 0 lifts a limit.

    Raises SwingError for an unknown preset or parameter.
    """
    if name not in PRESETS:
        raise SwingError(f"unknown preset '{name}'{_hint(name, PRESETS)}")
    known = {field.name for field in dataclasses.fields(SwingConfig)}
    for key in changes:
        if key not in known:
            raise SwingError(f"unknown parameter '{key}'{_hint(key, known)}")
    given = {k: v for k, v in changes.items() if v is not None}
    lifted = {k: None for k in LIMITS if given.get(k) == 0}
    return dataclasses.replace(PRESETS[name], **(given | lifted))


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(sorted(known))})"
