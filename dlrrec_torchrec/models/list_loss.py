"""The loss of the list head: a softmax over the catalogue, a sample of it or a batch, with log q."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrrec_torchrec.data.draws import kept_codes
from dlrrec_torchrec.data.listing import CANDIDATES, Listed
from dlrrec_torchrec.distributed.collectives import gather_rows
from dlrrec_torchrec.models.contrastive import NOTHING, masked_log_sum_exp
from dlrrec_torchrec.models.masks import first_occurrences
from dlrrec_torchrec.store.errors import DataError

MIDDLE = 0.4  # of the rating range, below which a rating says no more than that the item was chosen


class ListTerm(nn.Module):
    """The loss of the list head.

    For a row of user u with item i, where C are the candidates and pi_k the probability that item k is among
    them:

        w · -log(exp(s_ui) / (exp(s_ui) + sum over k in C, k != i, of exp(s_uk) / pi_k)),  s = the list logit

    w rises with the rating r, from `low_weight` to 1 at the top of the range:
    max(low_weight, (r - m) / (highest - m)) with m = lowest + 0.4 (highest - lowest). An item that was chosen
    and disliked is still nearer than one never chosen, but says less than one that was loved. Where ratings
    do not count, w is 1 for label 1 and `low_weight` for label 0.

    Over the whole catalogue pi = 1; a uniform sample of N out of I items has
    pi = N / I; the items of a batch of B rows have pi_k = 1 - (1 - p_k)^B, p_k the item's share of the
    training rows. Subtracting log pi_k is the correction of sampled softmax (Bengio and Senécal 2008):
    without it popular items, which are in every batch, are pushed away for being popular.

    A user's other training items are not among the candidates, unless `ListRows.mask_seen` is off: then,
    over a user's rows, the terms add up to the multinomial likelihood of all of them (Liang et al. 2018).
    Content of a user without the row's own review, as rows have it, knows all other items of hers but not
    this one, and would tell it from them; among items that she has not seen it tells nothing that a test row
    does not know.

    Args:
        weight: of the term in the loss; low_weight: the least w.
        candidates: of CANDIDATES, as the batches bring them.
        items: how many there are.
        id_dropout: share of ids that a step leaves out where there is content, so that content learns to
            stand in for them.
        counts: i64 [items] training rows of each item; needed for "batch".
        seed: of the dropout.
        rating_range: lowest and highest rating, for w; None: labels alone count.

    Example::

        >>> from dlrrec_torchrec.data.listing import ListRows
        >>> user, item = torch.tensor([0]), torch.tensor([1])
        >>> listed = ListRows("catalogue", items=2).of_batch(user, item, step=0)
        >>> term = ListTerm(weight=1.0, low_weight=0.3, candidates="catalogue", items=2)
        >>> same = torch.tensor([[1.0, 0.0]])
        >>> sides = same, same, torch.cat([same, same])  # both items are like the user
        >>> term(sides, listed, item, torch.tensor([1.0]), temperature=0.2)  # ln 2
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: float,
        low_weight: float,
        candidates: str,
        items: int,
        id_dropout: float = 0.0,
        counts: Tensor | None = None,
        seed: int = 0,
        rating_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if candidates not in CANDIDATES:
            raise DataError(f"list.candidates: {candidates!r} is not one of auto, {', '.join(CANDIDATES)}")
        self.weight, self.low_weight, self.rating_range = weight, low_weight, rating_range
        self.candidates, self.items, self.id_dropout, self.seed = candidates, items, id_dropout, seed
        if candidates == "batch":
            if counts is None:
                raise DataError("list.candidates=batch needs the items' numbers of training rows")
            self.register_buffer("share", counts.double() / counts.sum().clamp(min=1), persistent=False)

    def kept(self, user: Tensor, item: Tensor, candidates: Tensor, step: Tensor) -> tuple[Tensor | None, ...]:
        """Whose ids count in this step, for `ListHead.forward`."""
        if not self.id_dropout or not self.training:
            return None, None, None
        of_side = {"item": 2 * self.seed, "user": 2 * self.seed + 1}
        wanted = ((user, "user"), (item, "item"), (candidates, "item"))
        return tuple(kept_ids(codes, self.id_dropout, of_side[side], step) for codes, side in wanted)

    def forward(
        self,
        sides: tuple[Tensor, Tensor, Tensor],
        listed: Listed,
        item: Tensor,
        label: Tensor,
        temperature: float,
        rating: Tensor | None = None,
    ) -> Tensor:
        """The sum of the rows' losses on this rank, f32 scalar; padding (label -1) counts nothing.

        Args:
            sides: of the rows' users and items [B, E + 1], and of the candidates [N, E + 1].
            listed: of the batch.
            item, label, rating: of the rows, [B]; without ratings labels alone count.
        """
        users, own, compared = sides
        weight = row_weights(label, rating, self.low_weight, self.rating_range)
        if self.candidates == "batch":
            real = torch.where(label >= 0, item, -1)
            return batch_softmax(users, own, listed, real, weight, self.share, temperature)
        return list_softmax(users, own, compared, listed, self.items, item, weight, temperature)


@torch.fx.wrap
def kept_ids(codes: Tensor, dropped: float, seed: int, step: Tensor) -> Tensor:
    """`kept_codes`, as one node for the FX tracer."""
    return kept_codes(codes, dropped, seed, step)


@torch.fx.wrap
def row_weights(
    label: Tensor, rating: Tensor | None, low_weight: float, rating_range: tuple[float, float] | None
) -> Tensor:
    """w of `ListTerm` for rows with these labels and ratings, f32 [B]; 0 for padding (label -1)."""
    if rating is None or rating_range is None or rating_range[1] <= rating_range[0]:
        weight = torch.where(label > 0, 1.0, low_weight)
    else:
        lowest, highest = rating_range
        middle = lowest + MIDDLE * (highest - lowest)
        weight = ((rating - middle) / (highest - middle)).clamp(low_weight, 1.0)
    return weight * (label >= 0)


@torch.fx.wrap
def list_softmax(
    users: Tensor,
    own: Tensor,
    candidates: Tensor,
    listed: Listed,
    items: int,
    item: Tensor,
    weight: Tensor,
    temperature: float,
) -> Tensor:
    """`ListTerm.forward` against N candidates that are drawn uniformly out of `items`, or are all of them."""
    codes = listed.candidates
    log_pi = torch.full_like(codes, math.log(max(len(codes), 1) / items), dtype=torch.float32)
    allowed = allowed_candidates(codes, item, listed.seen_row, listed.seen_item)
    return softmax_sum(users, own, candidates, allowed, log_pi, weight, temperature)


@torch.fx.wrap
def batch_softmax(
    users: Tensor,
    own: Tensor,
    listed: Listed,
    item: Tensor,
    weight: Tensor,
    share: Tensor,
    temperature: float,
) -> Tensor:
    """`ListTerm.forward` against the items (-1: padding) of all ranks' rows, each once.

    `share`: f64 [items].
    """
    codes = gather_rows(item)
    rows = (codes >= 0).sum()
    log_pi = torch.log(-torch.expm1(rows * torch.log1p(-share[codes.clamp(min=0)]))).float()
    codes = torch.where(first_occurrences(codes), codes, -1)
    log_pi = torch.where(codes >= 0, log_pi, 0.0)
    allowed = allowed_candidates(codes, item, listed.seen_row, listed.seen_item)
    return softmax_sum(users, own, gather_rows(own), allowed, log_pi, weight, temperature)


def allowed_candidates(codes: Tensor, item: Tensor, seen_row: Tensor, seen_item: Tensor) -> Tensor:
    """Which candidates a row's item is compared with, bool [B, N]: neither itself nor what the user has seen.

    Args:
        codes: i64 [N], distinct; -1 for one that nobody is compared with.
        item: i64 [B].
        seen_row, seen_item: i64 [M], pairs of a row and an item.
    """
    number = len(codes)
    allowed = codes.new_ones(len(item), number + 1, dtype=torch.bool)
    allowed[:, :number] = (codes != item.unsqueeze(1)) & (codes >= 0)
    if number:
        ascending, order = codes.sort()
        place = torch.searchsorted(ascending, seen_item).clamp(max=number - 1)
        column = torch.where(ascending[place] == seen_item, order[place], number)
        allowed[seen_row, column] = False
    return allowed[:, :number]


def softmax_sum(
    users: Tensor,
    own: Tensor,
    candidates: Tensor,
    allowed: Tensor,
    log_pi: Tensor,
    weight: Tensor,
    temperature: float,
) -> Tensor:
    """The sum of the rows' losses (`ListTerm`), f32 scalar.

    Args:
        users, own: [B, E + 1]; candidates: [N, E + 1].
        allowed: bool [B, N]; log_pi: f32 [N].
        weight: f32 [B], 0 for padding.
    """
    with torch.autocast(users.device.type, enabled=False):
        users = users / temperature
        near = (users * own).sum(1)
        # One more dimension adds -log pi_k to every score.
        users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
        candidates = torch.cat([candidates, -log_pi.unsqueeze(1)], dim=1)
        if len(candidates):
            far = masked_log_sum_exp(users, candidates, allowed)
        else:
            far = torch.full_like(near, NOTHING)
        # -log(e^near / (e^near + e^far)) = log(1 + e^(far - near)); above the threshold softplus is identity
        losses = F.softplus(far - near, threshold=40)
        return (losses * weight).sum()
