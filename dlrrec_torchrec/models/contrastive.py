"""InfoNCE on the reduced vectors of users and of items (DLRREC section 3.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dlrrec_torchrec.distributed.collectives import gather_rows
from dlrrec_torchrec.models.masks import first_occurrences, negative_mask
from dlrrec_torchrec.store.errors import DataError

NOTHING = -1e30  # a masked logit: finite, so that a row without negatives has finite gradients


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    valid: Tensor,
    negative_mask: Tensor,
    temperature: float,
    normalize: bool,
    own: Tensor | None = None,
    own_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of DLRREC equation 1, summed over the valid anchors.

    For anchor j: -log(exp(u_j . p_j / tau) / (exp(u_j . p_j / tau) + sum_k exp(u_j . n_k / tau))), where k
    runs over the negatives allowed for j. Without an allowed negative the loss of an anchor is 0.
    Autocast is off inside: the logits are as exact as the vectors.

    Args:
        anchors, positives: float [B, D], row by row.
        negatives: float [N, D], shared by the anchors; N may be 0.
        valid: bool [B], the anchors that count.
        negative_mask: bool [B, N], True = allowed.
        temperature: tau.
        normalize: cosine instead of dot product.
        own: float [B, H, D], further negatives that each anchor has for itself; own_mask: bool [B, H].

    Returns:
        (sum of the losses, number of valid anchors i64): scalars. Without a valid anchor: 0, zero gradients.

    Example::

        >>> anchors = torch.tensor([[1.0, 0.0]])
        >>> losses, count = info_nce(
        ...     anchors,
        ...     positives=anchors,
        ...     negatives=torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        ...     valid=torch.tensor([True]),
        ...     negative_mask=torch.tensor([[True, False]]),  # the second is the anchor itself
        ...     temperature=1.0,
        ...     normalize=True,
        ... )
        >>> losses, count  # ln(1 + e^(0 - 1))
        (tensor(0.3133), tensor(1))
    """
    with torch.autocast(anchors.device.type, enabled=False):
        if normalize:
            anchors, positives, negatives = (F.normalize(x, dim=1) for x in (anchors, positives, negatives))
            own = None if own is None else F.normalize(own, dim=2)
        anchors = anchors / temperature
        near = (anchors * positives).sum(1)
        if len(negatives):
            far = masked_log_sum_exp(anchors, negatives, negative_mask)
        else:
            far = torch.full_like(near, NOTHING)
        if own is not None and own.shape[1]:
            scores = torch.einsum("bd,bhd->bh", anchors, own).masked_fill(~own_mask, NOTHING)
            far = torch.logaddexp(far, scores.logsumexp(1))
        # -log(e^near / (e^near + e^far)) = log(1 + e^(far - near)); above the threshold softplus is identity
        losses = F.softplus(far - near, threshold=40)
        return torch.where(valid, losses, 0.0).sum(), valid.sum()


def masked_log_sum_exp(anchors: Tensor, negatives: Tensor, allowed: Tensor) -> Tensor:
    """ln sum_k exp(a_j . n_k) over the k allowed for j: f32 [B]; about NOTHING where none is.

    Args:
        anchors: [B, D]; negatives: [N, D]; allowed: bool [B, N].

    By autograd alone, several more tensors of the size [B, N] would stay in memory.
    """
    return _MaskedLogSumExp.apply(anchors, negatives, allowed)


class _MaskedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors: Tensor, negatives: Tensor, allowed: Tensor) -> Tensor:
        scores = (anchors @ negatives.T).masked_fill_(allowed.logical_not(), NOTHING)
        largest = scores.amax(1)
        shares = scores.sub_(largest.unsqueeze(1)).exp_()  # softmax without the division by the sum
        total = shares.sum(1)
        ctx.save_for_backward(anchors, negatives, shares, total)
        return largest + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        anchors, negatives, shares, total = ctx.saved_tensors
        weight = (gradient / total).unsqueeze(1)
        return (shares @ negatives) * weight, shares.T @ (anchors * weight), None


def corpus_loss(
    anchors: Tensor,
    anchor_codes: Tensor,
    neighbours: Tensor,
    positives: Tensor,
    negatives: Tensor,
    negative_codes: Tensor,
    temperature: float,
    normalize: bool,
    own: Tensor | None = None,
    hardest: int = 0,
) -> tuple[Tensor, Tensor]:
    """`info_nce` against negatives drawn from the corpus.

    Anchors and positives with a zero (missing) vector do not count; negatives that are missing, the anchor
    itself or one of its neighbours are masked. One that is drawn twice, or is among the `own` of an anchor
    too, counts twice, as a sum over draws does.

    Args:
        anchors, positives: [B, D]; negatives: [N, D].
        anchor_codes: i64 [B]; neighbours: i64 [B, P], padded with -1; negative_codes: i64 [N].
        own: [B, H, D], hard negatives of each anchor: none of its neighbours, zeros for none.
        hardest: only so many of the negatives count for an anchor, by `semi_hard`; 0: all.
    """
    valid = present_rows(anchors) & present_rows(positives)
    allowed = negative_mask(anchor_codes, neighbours, negative_codes) & present_rows(negatives)
    if hardest and len(negatives):
        allowed = semi_hard(anchors, positives, negatives, allowed, hardest, normalize)
    own_mask = None if own is None else own.detach().ne(0).any(2)
    return info_nce(anchors, positives, negatives, valid, allowed, temperature, normalize, own, own_mask)


@torch.no_grad()
def semi_hard(
    anchors: Tensor, positives: Tensor, negatives: Tensor, allowed: Tensor, number: int, normalize: bool
) -> Tensor:
    """Which of the allowed negatives are semi-hard for an anchor: bool [B, N].

    FaceNet's (Schroff et al. 2015, section 3.2): less similar to the anchor than its positive is, and of
    these the `number` most similar. One that is more similar is as likely a positive that the lists missed,
    and the hardest of all make an untrained model collapse. Those equal to the last one stay too. An anchor
    whose allowed negatives all are at least as similar as its positive keeps the least similar of them.

    Args:
        anchors, positives: [B, D]; negatives: [N, D], N >= 1; allowed: bool [B, N].
        normalize: by cosines instead of dot products.

    Example::

        >>> one = torch.tensor([[1.0, 0.0]])
        >>> semi_hard(one, positives=torch.tensor([[0.8, 0.6]]),
        ...     negatives=torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]),
        ...     allowed=torch.tensor([[True, True, True]]), number=1, normalize=True)
        tensor([[False,  True, False]])
    """  # fmt: skip
    with torch.autocast(anchors.device.type, enabled=False):
        if normalize:
            anchors, positives, negatives = (F.normalize(x, dim=1) for x in (anchors, positives, negatives))
        near = (anchors * positives).sum(1, keepdim=True)
        scores = anchors @ negatives.T
        farther = allowed & (scores < near)
        outside = scores.masked_fill(~farther, -torch.inf)
        last = outside.topk(min(number, len(negatives)), dim=1).values[:, -1:]
        least = scores.masked_fill(~allowed, torch.inf).amin(1, keepdim=True)
        hardest, easiest = farther & (outside >= last), allowed & (scores <= least)
        return torch.where(farther.any(1, keepdim=True), hardest, easiest)


def batch_loss(
    anchors: Tensor,
    anchor_codes: Tensor,
    neighbours: Tensor,
    positives: Tensor,
    temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """`info_nce` against the other anchors of the batch, over all ranks; arguments as in `corpus_loss`.

    An entity in several rows is one negative, with the vector of its first row that has one.
    """
    negatives = gather_rows(anchors)
    codes = torch.where(present_rows(anchors), anchor_codes, -1)
    codes = gather_rows(codes)
    valid = present_rows(anchors) & present_rows(positives)
    allowed = negative_mask(anchor_codes, neighbours, codes) & first_occurrences(codes)
    return info_nce(anchors, positives, negatives, valid, allowed, temperature, normalize)


def present_rows(vectors: Tensor) -> Tensor:
    """Rows that are not all zero, bool [B]: a tower gives zeros for a missing vector."""
    return vectors.detach().ne(0).any(1)


class TermWeight(nn.Module):
    """The weight w of a contrastive term: w L, or learnable e^-s L + s with s = -log(w) at the start.

    The learnable form is the weighting by homoscedastic uncertainty of Kendall, Gal and Cipolla (2018), with
    a fixed weight of 1 for the recommendation loss. The papers' weights are fixed (equation 2).

    Example::

        >>> TermWeight(0.5)(torch.tensor(3.0))
        tensor(1.5000)
        >>> TermWeight(0.5, learnable=True)(torch.tensor(3.0))  # 0.5 * 3 + ln 2
        tensor(2.1931, grad_fn=<AddBackward0>)

    Raises:
        DataError: a negative weight.
    """

    def __init__(self, weight: float, learnable: bool = False, name: str = "weight") -> None:
        super().__init__()
        if not weight >= 0 or math.isinf(weight):
            raise DataError(f"contrastive.{name}: {weight} is not a weight; give a number >= 0 (0: off)")
        self.weight = weight
        self.s = nn.Parameter(torch.tensor(-math.log(weight))) if learnable and weight else None

    def forward(self, loss: Tensor) -> Tensor:
        if self.s is None:
            return self.weight * loss
        return torch.exp(-self.s) * loss + self.s
