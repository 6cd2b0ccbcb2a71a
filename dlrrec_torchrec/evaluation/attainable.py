"""The attainable AUC of a synthetic world: that of its law with the unknowns estimated from training rows.

The reachable AUC ranks by the true probabilities, which nobody can know: it takes every user's and item's
hidden numbers as given. Here the law's form is given (`world.Law`: clusters and their tastes, items' types
and prices, the scale of every part), and what is drawn for each user and item is estimated from the training
rows by maximum a posteriori: a sharper yardstick of what is left to gain from the same data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.nn.functional import logsigmoid, softplus

from dlrrec_torchrec.ingest.synthetic.world import FIVE, THREE, TWO, Law


@dataclasses.dataclass(frozen=True)
class Evidence:
    """N training rows of U users (codes below `users`) and of the law's items."""

    users: int
    user: np.ndarray  # i64 [N]
    item: np.ndarray  # i64 [N]
    rating: np.ndarray  # [N] 1 to 5
    like_user: np.ndarray  # i64 [L] whose text says to like ...
    like_type: np.ndarray  # i64 [L] ... this category type
    avoid_user: np.ndarray  # i64 [A]
    avoid_type: np.ndarray  # i64 [A]


def attainable_probability(
    law: Law, evidence: Evidence, user: np.ndarray, item: np.ndarray, iterations: int = 80
) -> np.ndarray:
    """Probability f64 [M] of a positive for the pairs `user`, `item` (codes as in `evidence`).

    Maximises the log of the posterior of all users' d_u, l_u, s_u and items' q_i (standard normal priors; q_i
    around a line in the log of the item's number of rows, because popularity and quality go together), with
    each user's cluster summed out, by L-BFGS. Per user u and cluster k the likelihood is the product of

    - the ratings': P(rating | logit), exactly the world's;
    - the visits': (1 - explore) softmax(visit_of_cluster[k] + visit_weight d_u)[f] + explore / F for the
      family f of each row, close to the world's, whose places are limited;
    - the texts': a type t that the user says to like has probability softmax(b taste_u)[t], one to avoid
      softmax(-b taste_u)[t], with taste_u = taste_of_cluster[k] + deviation_sd d_u by family and b fitted: an
      approximation of the world's, which draws from the few best and worst types.

    A pair's probability is the mean over clusters, weighted by their posterior. Everything else is a point
    estimate, so a better one can exist. L-BFGS stops after `iterations`, or when the sum changes by less than
    a hundredth of a nat.
    """
    form = _Form(law, evidence)
    parameters = form.parameters()
    optimizer = torch.optim.LBFGS(
        list(parameters.values()),
        max_iter=iterations,
        history_size=20,
        tolerance_change=0.01,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -torch.logsumexp(form.by_cluster(parameters), 1).sum() + form.prior(parameters)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        weight = torch.softmax(form.by_cluster(parameters), 1)  # [U, K]
        pair_user, pair_item = torch.as_tensor(user), torch.as_tensor(item)
        probability = torch.sigmoid(form.logits(parameters, pair_user, pair_item))  # [M, K]
        return (weight[pair_user] * probability).sum(1).double().numpy()


class _Form:
    """The log-likelihood of the evidence as tensors."""

    def __init__(self, law: Law, evidence: Evidence):
        self.law, self.evidence = law, evidence
        self.clusters, self.items = law.affinity_of_cluster.shape
        self.families = law.family_share.shape[1]
        self.affinity, self.price = _tensor(law.affinity_of_cluster.T), _tensor(law.price_effect)  # [I, K]
        self.share, self.visit = _tensor(law.family_share), _tensor(law.visit_of_cluster)
        self.user, self.item = torch.as_tensor(evidence.user), torch.as_tensor(evidence.item)
        self.rating = torch.as_tensor(np.asarray(evidence.rating, np.int64))
        counts = np.log1p(np.bincount(evidence.item, minlength=self.items))
        self.popularity = _tensor((counts - counts.mean()) / max(counts.std(), 1e-9))
        self.visits = self._counts(evidence.user, law.family[evidence.item])
        self.likes = self._counts(evidence.like_user, law.type_family[evidence.like_type])
        self.avoids = self._counts(evidence.avoid_user, law.type_family[evidence.avoid_type])
        taste = _tensor(law.taste_of_cluster)
        self.liked_taste = self._sums(evidence.like_user, taste.T[evidence.like_type])  # [U, K]
        self.avoided_taste = self._sums(evidence.avoid_user, taste.T[evidence.avoid_type])
        self.taste = [taste[:, law.type_family == f] for f in range(self.families)]

    def parameters(self) -> dict[str, torch.Tensor]:
        users, items = self.evidence.users, self.items
        start = {
            "deviation": torch.zeros(users, self.families),
            "leniency": torch.zeros(users),
            "sensitivity": torch.zeros(users),
            "quality": torch.zeros(items),
            "trend": torch.zeros(()),
            "bias": torch.tensor(self.law.bias, dtype=torch.float32),
            "sharpness": torch.tensor(3.0),  # of what is said
        }
        return {name: value.requires_grad_() for name, value in start.items()}

    def prior(self, p: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(p[n].square().sum() for n in ("deviation", "leniency", "sensitivity", "quality")) / 2

    def logits(self, p: dict[str, torch.Tensor], user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """[M, K] of pairs."""
        quality = self.law.quality_sd * (p["quality"] + p["trend"] * self.popularity)
        common = p["bias"] + quality[item] + self.law.leniency_sd * p["leniency"][user]
        common = common + self.price[item] * p["sensitivity"][user]
        common = common + self.law.deviation_weight * (p["deviation"][user] * self.share[item]).sum(1)
        return common[:, None] + self.affinity[item]

    def by_cluster(self, p: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-likelihood of each user's evidence under each cluster, f32 [U, K]."""
        rows = _log_rating(self.logits(p, self.user, self.item), self.rating, self.law.mean_logit)
        total = torch.zeros(self.evidence.users, self.clusters).index_add(0, self.user, rows)
        deviation = p["deviation"][:, None]  # [U, 1, F]
        chosen = torch.softmax(self.visit + self.law.visit_weight * deviation, 2)  # [U, K, F]
        chosen = (1 - self.law.explore) * chosen + self.law.explore / self.families
        total = total + (self.visits[:, None] * chosen.log()).sum(2)
        said = ((1, self.likes, self.liked_taste), (-1, self.avoids, self.avoided_taste))
        for sign, counts, taste in said:
            sharpness = sign * p["sharpness"]
            tilt = sharpness * self.law.deviation_sd * p["deviation"]  # [U, F]
            by_family = torch.stack([torch.logsumexp(sharpness * t, 1) for t in self.taste], 1)  # [K, F]
            norm = torch.logsumexp(by_family + tilt[:, None], 2)  # [U, K]
            total = total + sharpness * taste + (counts * tilt).sum(1, keepdim=True)
            total = total - counts.sum(1, keepdim=True) * norm
        return total

    def _counts(self, user: np.ndarray, family: np.ndarray) -> torch.Tensor:
        flat = np.bincount(user * self.families + family, minlength=self.evidence.users * self.families)
        return _tensor(flat.reshape(-1, self.families))

    def _sums(self, user: np.ndarray, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.evidence.users, self.clusters).index_add(0, torch.as_tensor(user), values)


def _log_rating(logit: torch.Tensor, rating: torch.Tensor, mean: float) -> torch.Tensor:
    """log P(rating | logit) [N, K]: positive from 4; then by whether logit - mean + logistic chance exceeds
    the world's thresholds."""
    x, rating = logit - mean, rating[:, None]
    five, three, two = x - FIVE, x - THREE, x - TWO
    # log(sigmoid(two) - sigmoid(three)), with two - three a constant above 0
    between = logsigmoid(two) + logsigmoid(-three) + np.log(-np.expm1(TWO - THREE))
    grade = torch.where(rating >= 5, logsigmoid(five), logsigmoid(-five))
    poor = torch.where(rating == 3, logsigmoid(three), torch.where(rating == 2, between, logsigmoid(-two)))
    return torch.where(rating >= 4, grade - softplus(-logit), poor - softplus(logit))


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, np.float32))
