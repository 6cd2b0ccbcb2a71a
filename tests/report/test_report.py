import base64
import copy
import html
import json
import re
import shutil
import statistics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk

from dlrrec_torchrec.evaluation.stage import PREDICTIONS
from dlrrec_torchrec.metrics import binary_metrics, expected_auc
from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.figures import reliability, roc_points
from dlrrec_torchrec.report.page import facts_html, html_page
from dlrrec_torchrec.report.results import ratings, verdict
from dlrrec_torchrec.report.stage import ABOVE, format_table, report, summarize
from dlrrec_torchrec.stages import manifest_folders
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.paths import run_paths
from tests.helpers.shards import make_facts

MODELS = {"dlrrec": 1.0, "bce": 0.4}
BASELINES = {"majority class": 0.0, "item mean": 0.7}
PEERS = {"SVD++": 0.5}
LIST_MODELS = {"dlrrec": 0.2}  # recall
LIST_PEERS = {"popularity": 0.1, "EASE": 0.25}
FIGURES = ("roc", "calibration", "learning_curves", "confusion", "swing_scores")


def write_evaluation(run, seed, *, truth=True, label=None, protocol="strict"):
    """An evaluation as its stage leaves it, of random rows; returns its metrics."""
    rng = np.random.default_rng(seed)
    n = 200
    p, q = rng.beta(3, 1, (2, n))
    q = (3 * p + q) / 4
    label = (rng.random(n) < p).astype(np.float32) if label is None else np.full(n, label, np.float32)
    user = rng.integers(0, 30, n).astype(np.int32)
    body = {
        "protocol": protocol,
        "rows": n,
        "positives": int(label.sum()),
        "reachable_auc": expected_auc(p) if truth else None,
        "attainable_auc": expected_auc(p, q) if truth else None,
        "truth": binary_metrics(label, p, user) if truth else None,
        "attainable": binary_metrics(label, q, user) if truth else None,
        "models": {},
        "baselines": {},
        "peers": {},
        "notes": [f"a note of seed {seed}", "a note of all"],
    }
    for kind, folder, names in (
        ("models", "predictions", MODELS),
        ("baselines", "baselines", BASELINES),
        ("peers", "peers", PEERS),
    ):
        (run.evaluation / folder).mkdir(parents=True, exist_ok=True)
        for name, share in names.items():
            probability = share * p + (1 - share) * (0.8 if share == 0 else rng.random(n))
            table = pa.table([user, user, label, label, probability, probability], schema=PREDICTIONS)
            pq.write_table(table, run.evaluation / folder / f"{name.replace(' ', '-')}.parquet")
            body[kind][name] = binary_metrics(label, probability, user)
    shift = seed / 100
    verdict = "better" if seed == 0 else "level"
    interval = {"difference": 0.04 + shift, "low": 0.01 - shift, "high": 0.07, "verdict": verdict}
    body["difference"] = {"against": "item mean", "models": {"dlrrec": interval}}
    body["lists"] = write_lists(shift)
    body["cold"] = write_cold(shift)
    body = jsonable(body)
    (run.evaluation / "metrics.json").write_text(json.dumps(body))
    Manifest("evaluate", {"seed": seed}, {}, rows={"test": n}, seconds=1.5, peak_memory_mib=200).write(
        run.evaluation
    )
    return body


def write_lists(shift):
    def metrics(recall):
        names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "map", "hit") for k in (10, 20, 50)]
        of_catalogue = {"coverage@20": 0.3, "popularity@20": 0.8, "popularity of relevant": 0.7}
        return dict.fromkeys(names, recall + shift) | of_catalogue

    interval = {"difference": -0.05, "low": -0.08, "high": -0.02, "verdict": "worse"}
    return {
        "protocol": "all unseen items",
        "users": 50,
        "all_users": 60,
        "items": 30,
        "relevant": 2.5,
        "models": {name: metrics(recall) for name, recall in LIST_MODELS.items()},
        "peers": {name: metrics(recall) for name, recall in LIST_PEERS.items()},
        "chosen": {"EASE": "λ = 100"},
        "differences": {"recall@20": {"against": "EASE", "models": {"dlrrec": interval}}},
        "notes": ["lists of 'bce' left out: no reason"],
    }


def write_cold(shift):
    gap = {"difference": 0.02 + shift, "low": 0.01, "high": 0.03, "verdict": "better"}

    def metrics(mean, **more):
        return {m: {"mean": mean + shift, "low": 0.1, "high": 0.5} | more for m in ("recall@20", "ndcg@20")}

    models = {"dlrrec": {"likes": metrics(0.31)}, "bce": {"likes": metrics(0.29, gap=gap)}}
    task = {"users": 50, "items": 12, "relevant": 1.5, "chance": 0.25, "models": models}
    return {"tasks": {"new items, 1 review": task}, "notes": ["content alone: a reason"]}


def write_rest(run, seed):
    """What the report reads of the other stages."""
    rng = np.random.default_rng(seed)
    for kind in ("users", "items"):
        scores = [rng.random(k).astype(np.float32) for k in rng.integers(0, 4, 30)]
        rows = {
            "id": [f"{k}" for k in range(30)],
            "neighbors": [["x"] * len(s) for s in scores],
            "scores": scores,
        }
        write_table(pa.table(rows, schema=schema.NEIGHBORS), run.swing / kind)
    Manifest("swing", {}, {}, seconds=2, peak_memory_mib=300 + seed).write(run.swing)
    Manifest(
        "prepare", {}, {}, facts=make_facts(users=40, items=30).as_facts(), seconds=3, peak_memory_mib=10
    ).write(run.shards)
    Manifest("extract", {}, {}, facts={"agreement": {"price_tag": 0.6125, "items": 91}}).write(run.content)
    for name in MODELS:
        run.train(name).mkdir(parents=True)
        Manifest("train", {"model": {}, "protocol": "strict"}, {}, seconds=10.0 + seed).write(run.train(name))
        lines = [{"epoch": e, "train_loss": 1 / (e + 1), "loss": 0.5, "auc": 0.6 + e / 100} for e in range(5)]
        (run.train(name) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        (run.train(name) / "best.json").write_text(json.dumps({"epoch": 3}))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two seeds of a whole run with their report: folders, metrics of the evaluations, manifest."""
    runs = run_paths(tmp_path_factory.mktemp("report"), 2)
    for seed, run in enumerate(runs):
        write_rest(run, seed)
    Manifest("ingest", {}, {}, rows={"reviews": 1234}, facts={"rejected": {"rating is no number": 5}}).write(
        _made(runs[0].reviews)
    )
    evaluations = [write_evaluation(run, seed) for seed, run in enumerate(runs)]
    return runs, evaluations, report_of(runs, list(MODELS), runs[0].report)


@pytest.fixture
def runs(reported, tmp_path):
    """A copy to change."""
    paths, evaluations, _ = reported
    shutil.copytree(paths[0].shared, tmp_path / "run")
    return run_paths(tmp_path / "run", 2), copy.deepcopy(evaluations)


def report_of(runs, variants, out):
    return report(runs, variants, manifest_folders(runs, variants), out)


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def png(path):
    body = path.read_bytes()
    assert body[:8] == b"\x89PNG\r\n\x1a\n"
    return body


def plain(page):
    """The words of an HTML page, without tags and images."""
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))


def rows_of(summary):
    return [
        *summary["models"].values(),
        *summary["baselines"].values(),
        *summary["peers"].values(),
        summary["truth"],
        summary["attainable"],
    ]


def test_a_share_above_one_is_explained(runs):
    _, evaluations = runs
    for evaluation in evaluations:
        evaluation |= {"reachable_auc": 0.99, "attainable_auc": 0.98}
    assert ABOVE not in summarize(evaluations, list(MODELS))["notes"]
    evaluations[1]["models"]["dlrrec"]["auc"] = 0.985
    assert ABOVE in summarize(evaluations, list(MODELS))["notes"]


def test_numbers_are_those_of_the_evaluations(reported):
    paths, evaluations, manifest = reported
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    assert summary["protocol"] == "strict" and summary["seeds"] == 2 and summary["rows"] == [200, 200]
    for group, names in (("models", MODELS), ("baselines", BASELINES)):
        assert list(summary[group]) == list(names)
        for name in names:
            for key in ("auc", "accuracy", "fpr", "loss", "auprc", "ne", "calibration", "user_auc", "tp"):
                values = [e[group][name][key] for e in evaluations]
                metric = summary[group][name][key]
                assert metric["seeds"] == values
                assert metric["mean"] == pytest.approx(statistics.mean(values))
                assert metric["sd"] == pytest.approx(statistics.stdev(values))
            shares = [(e[group][name]["auc"] - 0.5) / (e["reachable_auc"] - 0.5) for e in evaluations]
            assert summary[group][name]["reachable_share"]["seeds"] == pytest.approx(shares)
            shares = [(e[group][name]["auc"] - 0.5) / (e["attainable_auc"] - 0.5) for e in evaluations]
            assert summary[group][name]["attainable_share"]["seeds"] == pytest.approx(shares)
    for name in ("reachable_auc", "attainable_auc"):
        assert summary[name]["seeds"] == [e[name] for e in evaluations]
    assert summary["truth"]["attainable_share"]["mean"] is None  # it knows what no data tell
    shares = [m[f"{n}_share"]["seeds"] for m in rows_of(summary) for n in ("reachable", "attainable")]
    assert any(s is not None and s > 1 for seeds in shares for s in seeds) == (ABOVE in summary["notes"])
    assert manifest.facts["auc/dlrrec"] == summary["models"]["dlrrec"]["auc"]["mean"]


def test_every_table_shows_the_numbers(reported):
    paths, _, _ = reported
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    text, page = format_table(paths[0].report), plain((paths[0].report / "index.html").read_text())
    markdown = (paths[0].report / "table.md").read_text()
    assert text == format_table(summary)
    for name, metrics in (summary["models"] | summary["baselines"]).items():
        row, *_ = [line for line in markdown.splitlines() if line.startswith(f"| {name} |")]
        at = text.splitlines().index(next(x for x in text.splitlines() if x.lstrip().startswith(name)))
        for key in ("auc", "accuracy", "fpr", "loss", "user_auc"):
            mean, deviation = f"{metrics[key]['mean']:.3f}", f"{metrics[key]['sd']:.3f}"
            assert f"{mean} ± {deviation}" in row
            assert mean in text.splitlines()[at] and f"±{deviation}" in text.splitlines()[at + 1]
            assert re.search(rf"{mean}\s*± {deviation}", page)
    for words in (text, markdown, page):
        assert "protocol strict" in words and "2 seeds" in words and "200 test rows" in words
        assert f"reachable AUC {cell(summary['reachable_auc'])}" in words
        assert f"attainable AUC {cell(summary['attainable_auc'])}" in words
        assert "of attainable" in words and "true form, estimated" in words
        assert "a note of all (seed 0, 1)" in words and "a note of seed 1 (seed 1)" in words
        assert "never judge by" in words.lower()


def test_page_stands_alone_and_tells_of_data_and_cost(reported):
    paths, _, _ = reported
    page = (paths[0].report / "index.html").read_text()
    for name in FIGURES:
        image = png(paths[0].report / f"{name}.png")
        assert base64.b64encode(image).decode() in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in plain(page)
    words = re.sub(r"\s+", " ", plain(page))
    assert "rows reviews 1,234" in words and "rejected rating is no number 5" in words
    assert "agreement price tag 0.6125 items 91" in words
    assert "train: dlrrec 10.5" in words  # seconds: the mean of the seeds
    assert "swing 2.0 301" in words  # memory: the largest


def test_report_is_reused_until_an_evaluation_changes(runs):
    paths, _ = runs
    assert report_of(paths, list(MODELS), paths[0].report).reused
    write_evaluation(paths[1], 7)
    assert not report_of(paths, list(MODELS), paths[0].report).reused
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    assert any("a note of seed 7" in note for note in summary["notes"])


def test_one_seed_without_truth_and_without_the_other_stages(tmp_path):
    (run,) = run_paths(tmp_path, 1)
    body = write_evaluation(run, 3, truth=False)
    Manifest("prepare", {}, {}, facts=make_facts(users=40, items=30).as_facts()).write(_made(run.shards))
    report_of([run], list(MODELS), run.report)
    summary = json.loads((run.report / "metrics.json").read_text())
    assert summary["models"]["dlrrec"]["auc"] == {
        "mean": body["models"]["dlrrec"]["auc"],
        "sd": None,
        "seeds": [body["models"]["dlrrec"]["auc"]],
    }
    notes = " / ".join(summary["notes"])
    for words in ("one seed", "no reachable AUC", "no metrics.jsonl of 'dlrrec'", "no SWING neighbours"):
        assert words in notes
    text = format_table(run.report)
    assert "of reachable" not in text and "±" not in text and "true probabilities are unknown" in text
    for name in FIGURES:
        png(run.report / f"{name}.png")


def test_one_class_in_the_test_rows(tmp_path):
    (run,) = run_paths(tmp_path, 1)
    write_rest(run, 0)
    write_evaluation(run, 3, label=1.0)
    report_of([run], list(MODELS), run.report)
    summary = json.loads((run.report / "metrics.json").read_text())
    assert summary["models"]["dlrrec"]["auc"] == {"mean": None, "sd": None, "seeds": [None]}
    assert format_table(run.report).splitlines()[2].split()[:2] == [
        "AUPRC",
        "accuracy",
    ]  # no column without a value
    assert "cannot be compared" in plain((run.report / "index.html").read_text())
    png(run.report / "roc.png")


def test_a_seed_where_a_metric_is_undefined_is_left_out_of_its_mean(runs):
    _, evaluations = runs
    evaluations[1]["models"]["dlrrec"]["user_auc"] = None
    user_auc = summarize(evaluations, list(MODELS))["models"]["dlrrec"]["user_auc"]
    defined = evaluations[0]["models"]["dlrrec"]["user_auc"]
    assert user_auc == {"mean": defined, "sd": None, "seeds": [defined, None]}


def test_what_is_missing_is_named(runs, tmp_path):
    paths, _ = runs
    with pytest.raises(DataError, match="variant 'other' is not evaluated"):
        report_of(paths, ["dlrrec", "other"], tmp_path / "out")
    (paths[1].evaluation / "metrics.json").unlink()
    with pytest.raises(DataError, match="seed-1/evaluation/metrics.json: missing; run the stage 'evaluate'"):
        report_of(paths, list(MODELS), tmp_path / "out")
    write_evaluation(paths[1], 1, protocol="paper")
    with pytest.raises(DataError, match="different protocols .paper, strict."):
        report_of(paths, list(MODELS), tmp_path / "out")
    with pytest.raises(DataError, match="run the stage 'report' first"):
        format_table(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_best_of_a_column_and_the_verdict(runs):
    summary = summarize(runs[1], list(MODELS))
    rows = {(g, n): m for g in ("models", "baselines", "peers") for n, m in summary[g].items()}
    aucs, losses = ({row: m[key]["mean"] for row, m in rows.items()} for key in ("auc", "loss"))
    table = ratings(summary)
    assert table.best("auc") == {max(aucs, key=aucs.get)}
    assert table.best("loss") == {min(losses, key=losses.get)}
    assert table.best("fpr") == set()  # never alone
    means = {name: auc for (_, name), auc in aucs.items()}
    gain = means["dlrrec"] - means["item mean"]
    assert f"{abs(gain):.3f} {'above' if gain > 0 else 'below'} the best other method, item mean" in verdict(
        summary
    )
    swapped = summary | {"models": {"bce": summary["models"]["bce"]}}
    assert "below the best other method" in verdict(swapped)


def test_lists_peers_and_differences_are_shown(reported):
    paths, _, _ = reported
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    ease = summary["lists"]["peers"]["EASE"]["recall@20"]
    assert ease["seeds"] == [0.25, 0.26] and ease["mean"] == pytest.approx(0.255)
    text, page = format_table(paths[0].report), plain((paths[0].report / "index.html").read_text())
    markdown = (paths[0].report / "table.md").read_text()
    for words in (text, markdown, page):
        words = re.sub(r"\s+", " ", words)
        assert (
            "SVD++" in words and "Recall@20" in words and "all unseen items · 50 users, 2.5 relevant" in words
        )
        assert "best other method, item mean: +0.045; of 2 seeds 1 better, 1 level" in words
        assert (
            "Recall@20 of dlrrec less that of the best other method, EASE: -0.050; of 2 seeds 2 worse"
            in words
        )
        assert "lists of 'bce' left out: no reason" in words
    (row,) = [line for line in markdown.splitlines() if line.startswith("| EASE |")]
    assert "**0.255 ± 0.007**" in row and "0.800 ± 0.000" in row  # no best of popularity


def test_lists_by_content_alone_are_shown(reported):
    paths, _, _ = reported
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    task = summary["cold"]["new items, 1 review"]
    assert task["models"]["dlrrec, likes"]["recall@20"]["mean"] == pytest.approx(0.315)
    text, page = format_table(paths[0].report), plain((paths[0].report / "index.html").read_text())
    markdown = (paths[0].report / "table.md").read_text()
    for words in (text, markdown, page):
        words = re.sub(r"\s+", " ", words)
        assert "new items, 1 review, by content alone · 50 users, 1.5 relevant items each, of 12" in words
        assert "Recall@20 of a random order 0.250" in words and "dlrrec, likes" in words
        assert "Recall@20 of dlrrec less bce, likes: +0.025" in words
        assert "content alone: a reason" in words


def test_the_interval_of_one_seed_is_shown(tmp_path):
    summary = summarize([write_evaluation(run_paths(tmp_path, 1)[0], 0)], list(MODELS))
    assert "dlrrec less bce, likes: +0.020 [+0.010, +0.030]" in format_table(summary)
    assert "item mean: +0.040 [+0.010, +0.070], better" in format_table(summary)


def test_names_cannot_break_the_page(runs):
    summary = summarize(runs[1], list(MODELS))
    summary["models"] = {"<script>x</script>": summary["models"]["dlrrec"]}
    page = html_page(summary, {"split": [Manifest("split", {}, {}, facts={"<b>": "<i>"})]}, {})
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;i&gt;" in page


def test_facts_become_lists_and_tables():
    facts = {"a_b": {"c": 1234567, "d": [1, 2]}, "e": 0.123456, "f": True, "g": None, "h": list(range(20))}
    facts["parts"] = {"train": {"rows": 9, "users": 8}, "test": {"rows": 7, "users": 6}}
    facts["deep"] = {"x": {"y": {"z": "<"}}, "k": 3}
    page = facts_html(facts)
    words = re.sub(r"\s+", " ", plain(page))
    assert "e 0.1235 f yes g – h 20 values" in words
    assert "a b c 1,234,567 d 1, 2" in words
    assert "parts rows users train 9 8 test 7 6" in words
    assert "deep k 3" in words and "deep · x z y <" in words
    assert "<tr><td>train</td><td>9</td><td>8</td></tr>" in page


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


def test_what_went_wrong_before_is_in_the_notes(runs):
    paths, _ = runs
    alarm = {"name": "saturated", "step": 20, "text": "all probabilities are 1", "over": False}
    settings, inputs = {"model": {}, "protocol": "strict"}, {}
    ended = [alarm, alarm | {"name": "held_out", "text": "few rows", "over": True}]
    facts = [{"alarms": ended, "best_epoch": 0, "start": {"C": 1.0}}, {"alarms": [alarm], "best_epoch": 0}]
    for run, found in zip(paths, facts, strict=True):
        Manifest("train", settings, inputs, facts=found).write(run.train("dlrrec"))
        Manifest("split", {}, {}, facts={"copied_texts": {"val": 0, "test": 12}}).write(_made(run.split))
    shutil.rmtree(paths[0].report)
    report_of(paths, list(MODELS), paths[0].report)
    notes = json.loads((paths[0].report / "metrics.json").read_text())["notes"]
    assert "dlrrec: all probabilities are 1; from step 20 on (seed 0, 1)" in notes
    assert sum("few rows" in note for note in notes) == 0
    (start,) = [note for note in notes if "logistic regression of the dense" in note]
    assert start.startswith("dlrrec: no epoch") and start.endswith("(seed 0)")
    assert any(note.startswith("12 test rows have the very text") for note in notes)
    assert "12 test rows have the very text" in (paths[0].report / "index.html").read_text()
