"""The attainable AUC: the law is the world's, and its unknowns are found from the training rows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_matrix, hstack
from scipy.sparse.linalg import lsqr

from dlrrec_torchrec.evaluation.attainable import Evidence, _log_rating, attainable_probability
from dlrrec_torchrec.ingest.synthetic.world import FIVE, THREE, TWO, Law, make_world
from dlrrec_torchrec.ingest.synthetic.write import write_world
from dlrrec_torchrec.metrics import expected_auc


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attainable")
    write_world("small", 0, folder)
    return make_world("small", 0), folder


def evidence_of(world, folder, rows):
    table = pq.read_table(folder / "truth.parquet", columns=["likes", "avoids"]).take(rows)
    said = []
    for name in ("likes", "avoids"):
        lists = table[name].to_pylist()
        said += [np.repeat(world.user[rows], [len(x) for x in lists]), np.array(sum(lists, []), np.int64)]
    return Evidence(len(world.taste), world.user[rows], world.item[rows], world.rating[rows], *said)


def halves_of(world):
    part = np.random.default_rng(0).random(len(world.user)) < 0.7
    return np.flatnonzero(part), np.flatnonzero(~part)


def test_the_law_makes_the_worlds_log_odds(small):
    """With the users' true deviations and sensitivities what remains is one number a user and one an item."""
    world, _ = small
    law, user, item = world.law, world.user, world.item
    by_family = np.stack([(world.taste - law.taste_of_cluster[world.cluster])[:, law.type_family == f][:, 0]
                          for f in range(law.family_share.shape[1])], 1)  # fmt: skip
    known = law.affinity_of_cluster[world.cluster[user], item] + law.bias
    known += law.deviation_weight * (by_family[user] / law.deviation_sd * law.family_share[item]).sum(1)
    known += law.price_effect[item] * (world.sensitivity[user] - 0.4)
    logit = np.log(world.probability / (1 - world.probability))
    assert logit.mean() == pytest.approx(law.mean_logit)
    rest = logit - known
    rows = np.arange(len(user))
    effects = hstack([csr_matrix((np.ones(len(user)), (rows, code))) for code in (user, item)]).tocsr()
    fitted = effects @ lsqr(effects, rest, atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(fitted, rest, atol=1e-4)
    assert rest.std() == pytest.approx(np.hypot(law.quality_sd, law.leniency_sd), rel=0.1)


def test_law_and_ids_come_back_from_the_file(small):
    world, folder = small
    law, ids = Law.read(folder / "law.npz")
    assert ids[:2] == ["r00000", "r00001"] and len(ids) == len(world.types)
    for field in dataclasses.fields(Law):
        np.testing.assert_array_equal(getattr(law, field.name), getattr(world.law, field.name))


def test_rating_probabilities_are_the_worlds():
    """They sum to 1, and follow by counting draws of the world's rule."""
    logit = np.linspace(-4, 6, 21)
    p = np.stack(
        [
            np.exp(_log_rating(torch.tensor(logit)[:, None], torch.full((21,), k), 2.5)[:, 0].numpy())
            for k in range(1, 6)
        ]
    )
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-9)
    np.testing.assert_allclose(p[3:].sum(0), 1 / (1 + np.exp(-logit)), atol=1e-9)
    rng = np.random.default_rng(0)
    surprise = logit - 2.5 + rng.logistic(size=(200_000, 21))
    positive = rng.random((200_000, 21)) < 1 / (1 + np.exp(-logit))
    rating = np.where(
        positive,
        np.where(surprise > FIVE, 5, 4),
        np.where(surprise > THREE, 3, np.where(surprise > TWO, 2, 1)),
    )
    for k in range(1, 6):
        np.testing.assert_allclose(p[k - 1], (rating == k).mean(0), atol=0.006)


def test_estimates_lie_between_means_and_the_truth(small):
    world, folder = small
    train, test = halves_of(world)
    evidence, pairs = evidence_of(world, folder, train), (world.user[test], world.item[test])
    true = world.probability[test]
    estimate = attainable_probability(world.law, evidence, *pairs)
    reached = expected_auc(true, estimate)
    assert expected_auc(true, world.means[test]) + 0.02 < reached < expected_auc(true) - 0.02
    assert estimate.sum() == pytest.approx(true.sum(), rel=0.03)  # calibrated
    assert np.abs(estimate - true).mean() < np.abs(true.mean() - true).mean()
    # more rows, better; without what texts say, worse
    fewer = evidence_of(world, folder, train[::4])
    assert expected_auc(true, attainable_probability(world.law, fewer, *pairs)) < reached - 0.01
    none = np.zeros(0, np.int64)
    silent = dataclasses.replace(evidence, like_user=none, like_type=none, avoid_user=none, avoid_type=none)
    assert expected_auc(true, attainable_probability(world.law, silent, *pairs)) < reached


def test_it_is_a_mean_over_clusters_without_evidence(small):
    """A user and an item without rows: the prior's mean."""
    law = small[0].law
    none = np.zeros(0, np.int64)
    evidence = Evidence(1, none, none, none, none, none, none, none)
    item = np.arange(5)
    estimate = attainable_probability(law, evidence, np.zeros(5, np.int64), item)
    expected = (1 / (1 + np.exp(-(law.bias + law.affinity_of_cluster[:, item])))).mean(0)
    np.testing.assert_allclose(estimate, expected, atol=1e-5)


def test_the_stage_writes_it(tiny_run):
    root, _, _ = tiny_run
    metrics = json.loads((root / "evaluation" / "metrics.json").read_text())
    table = pq.read_table(root / "evaluation" / "attainable.parquet")
    true = pq.read_table(root / "evaluation" / "truth.parquet")["probability"].to_numpy()
    score = table["score"].to_numpy()
    assert metrics["attainable_auc"] == pytest.approx(expected_auc(true, score))
    assert 0.5 < metrics["attainable_auc"] < metrics["reachable_auc"]
    assert metrics["attainable"]["auc"] is not None
