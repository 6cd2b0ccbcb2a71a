import itertools

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from dlrrec_torchrec.report import curves, figures, forest, space_map, space_quality, style, swing_quality
from dlrrec_torchrec.report.figures import reliability, roc_points
from tests.report.written import write_space


def test_roc_points_against_sklearn():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 300), np.round(rng.random(300), 1)
    x, y = roc_points(label, score)
    expected = sk.roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose(x, expected[0])
    np.testing.assert_allclose(y, expected[1])


def test_reliability_bins():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    label = rng.random(5000) < p
    mean, share, low, high = reliability(label, p)
    order = np.argsort(p, kind="stable")
    np.testing.assert_allclose(mean, p[order].reshape(10, 500).mean(1), atol=1e-3)
    np.testing.assert_allclose(share, label[order].reshape(10, 500).mean(1), atol=5e-3)
    assert ((low <= mean) & (mean <= high)).sum() >= 8 and ((low <= share) & (share <= high)).all()
    single_bin = reliability(np.array([1, 0, 1, 1]), np.full(4, 0.75))
    assert single_bin[0] == [0.75] and single_bin[1] == [0.75]
    # Wilson interval of 3 out of 4
    assert single_bin[2][0] == pytest.approx(0.3006, abs=1e-3) and single_bin[3][0] == pytest.approx(
        0.9544, abs=1e-3
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the code saves, kept open."""
    kept = []
    for module in (curves, figures, forest, space_map, space_quality, swing_quality):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    yield kept
    plt.close("all")


def histories(names, epochs=5):
    records = [
        {
            "epoch": e,
            "auc": 0.6 + e / 50,
            "loss": 0.6 - e / 50,
            "split": "val",
            "effective_rank_item_text": 9.0,
        }
        for e in range(epochs)
    ]
    for record in records[1:]:
        record["train_loss"] = 0.5
    return {name: [records] for name in names}


def test_many_variants_have_colours_of_their_own_and_names_at_their_ends(drawn, tmp_path):
    names = [f"variant {k}" for k in range(25)]
    assert len(set(style.colours(names).values())) == 25
    found = histories(names)
    curves.draw_panel(curves.panels(found)["auc.png"], found, dict.fromkeys(names, [3]), tmp_path / "x.png")
    axes = drawn[0].axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert len({line.get_color() for line in lines}) == 25
    assert all(line.get_xdata()[0] == 0 for line in lines)  # the epoch before training too
    assert {text.get_text(): text.get_color() for text in axes.texts} == style.colours(names)
    drawn[0].canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without its line
    overlaps = [a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for a, b in itertools.combinations(boxes, 2)]
    assert not any(overlaps)
    assert drawn[0].get_figwidth() <= style.WIDTH and axes.get_legend() is None


def test_panels_are_of_what_was_recorded():
    found = curves.panels(histories(["a"]))
    assert list(found) == ["loss.png", "auc.png", "effective_rank.png"]
    assert list(curves.panels({"a": [[]]})) == ["loss.png", "auc.png"]
    with_terms = {"a": [[{"epoch": 1, "train_loss_rec": 1.0, "train_loss_ii": 2.0, "ndcg@20": 0.1}]]}
    found = curves.panels(with_terms)
    assert "contrastive.png" in found and "lists.png" in found
    assert found["loss.png"].keys == {"loss": "validation", "train_loss_rec": "training"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.08))
@settings(max_examples=50, deadline=None)
def test_labels_are_moved_apart_no_further_than_needed(places, gap):
    places = sorted(places)
    moved = style.spread(places, [gap] * (len(places) - 1))
    steps = np.diff(moved)
    assert (steps >= gap - 1e-9).all() and moved[-1] <= 1 + 1e-9
    if (np.diff(places) >= gap).all():
        assert moved == pytest.approx(places)


def interval(difference, low, high, verdict):
    return {"against": "EASE", "difference": difference, "low": low, "high": high, "verdict": verdict}


def test_the_forest_shows_every_interval_and_its_verdict(drawn, tmp_path):
    better, worse = interval(0.02, 0.01, 0.03, "better"), interval(-0.02, -0.03, -0.01, "worse")
    differences = {
        "AUC": {"a": [better]},
        "Recall@20": {"a": [better, worse], "b": [interval(0.0, -0.01, 0.01, "level")] * 2},
        "NDCG@20": {},
    }
    assert forest.forest(differences, tmp_path / "x.png")
    first, second = drawn[0].axes
    assert first.get_title(loc="left") == "AUC, less that of EASE"
    assert [text.get_text() for text in first.texts] == ["+0.020 [+0.010, +0.030]\nbetter"]
    assert [text.get_text() for text in second.texts] == ["+0.000 [-0.010, +0.010]\nlevel"] * 2
    bars = {(*line.get_xdata(), line.get_color()) for line in second.lines[1:] if len(line.get_xdata()) == 2}
    expected = [(0.01, 0.03, "better"), (-0.03, -0.01, "worse"), (-0.01, 0.01, "level")]
    assert bars == {(low, high, forest.LOOKS[verdict][0]) for low, high, verdict in expected}
    assert not forest.forest({"AUC": {}}, tmp_path / "x.png")


def test_calibration_is_zoomed_to_the_predictions(drawn, tmp_path):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.7, 0.8, 2000)
    rows = [((rng.random(2000) < p).astype(float), p)]
    figures.calibration_curves({"a": rows}, ["a"], tmp_path / "x.png")
    low, high = drawn[0].axes[0].get_xlim()
    assert 0.68 < low < 0.71 and 0.79 < high < 0.82
    bottom, top = drawn[0].axes[0].get_ylim()
    assert bottom > 0.5 and top < 0.95


def write_vectors(path, vectors, names):
    pq.write_table(pa.table({"vector": list(vectors.astype(np.float32)), "group": names}), path)
    return path


def test_the_map_keeps_groups_together_and_apart(drawn, tmp_path):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 20)
    vectors = rng.normal(size=(60, 8)) * 0.1 + 5 * np.eye(8)[group]
    vectors[0] = 0  # no content
    names = [["a", "b", ""][g] for g in group]
    files = {
        "with": write_vectors(tmp_path / "v.parquet", vectors, names),
        "without": write_vectors(tmp_path / "w.parquet", rng.normal(size=(60, 4)), names),
    }
    assert space_map.space_map(files, "items", tmp_path / "x.png") == 59
    assert [axes.get_title() for axes in drawn[0].axes] == ["with", "without"]
    first, second = (
        {c.get_label(): len(c.get_offsets()) for c in axes.collections} for axes in drawn[0].axes
    )
    assert first == {"b": 20, "a": 19, space_map.OTHERS: 20} and second == first | {"a": 20}
    looks = [{c.get_label(): tuple(c.get_facecolor()[0]) for c in axes.collections} for axes in drawn[0].axes]
    assert looks[0] == looks[1]
    place = space_map.project(vectors[1:])
    distance = np.linalg.norm(place[:, None] - place[None], axis=2) + 1e9 * np.eye(59)
    assert (group[1:][distance.argmin(1)] == group[1:]).all()
    np.testing.assert_array_equal(place, space_map.project(vectors[1:]))
    files["few"] = write_vectors(tmp_path / "few.parquet", vectors[1:5], names[1:5])
    assert space_map.space_map(files, "items", tmp_path / "x.png") == 0
    assert space_map.space_map({}, "items", tmp_path / "x.png") == 0


def test_with_and_without_the_terms_stand_side_by_side():
    assert space_map.mapped(["x", "bce", "dlrrec"]) == ["dlrrec", "bce"]
    assert space_map.mapped(["a", "b", "c"]) == ["a", "b"] and space_map.mapped(["dlrrec"]) == ["dlrrec"]


def test_the_line_of_scores_is_the_share_at_or_above(drawn, tmp_path):
    scores = np.array([0.5, 2.0, 0.1, 2.0], np.float32)
    facts = {"computed": True, "coverage": 0.5}
    swing_quality.draw_scores(
        {"users": scores, "items": scores[:0]}, dict.fromkeys(("users", "items"), facts), ""
    )
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert "Users: 50% have neighbours" in titles
    (beside,) = [axes for axes in drawn[0].axes if axes.lines]
    x, y = beside.lines[0].get_data()
    for value in scores:
        assert y[x == value].max() == (scores >= value).mean()
    words = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert words == ["no neighbours"]


def test_distances_show_their_intervals(drawn, tmp_path):
    body = write_space(0)
    space = space_quality.gather_space([body, body], list(body))
    assert space_quality.draw_distances(space, tmp_path / "x.png")
    left, right, *_ = drawn[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["content vectors", "dlrrec", "bce"]
    near, far, random = (line.get_xdata() for line in left.lines)
    assert (near < far).all() and (far < random).all() and near.tolist() == [0.2, 0.3, 0.3]
    bars = [tuple(line.get_xdata()) for line in right.lines if len(line.get_xdata()) == 2]
    facts = [body["dlrrec"]["user"]["before"], *(body[n]["user"]["after"] for n in ("dlrrec", "bce"))]
    assert bars[:3] == [(one["nearer"]["low"], one["nearer"]["high"]) for one in facts]
    assert not space_quality.draw_distances({}, tmp_path / "x.png")
