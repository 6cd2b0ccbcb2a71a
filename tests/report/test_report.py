import base64
import copy
import html
import json
import re
import shutil
import statistics

import numpy as np
import pytest

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.report import stage
from dlrrec_torchrec.report.about import Origin
from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.in_words import sentences
from dlrrec_torchrec.report.page import html_page
from dlrrec_torchrec.report.results import ratings
from dlrrec_torchrec.report.stage import ABOVE, format_table, report, summarize
from dlrrec_torchrec.stages import manifest_folders
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import run_paths
from tests.helpers.shards import make_facts
from tests.report.written import BASELINES, EXAMPLES, MODELS, write_evaluation, write_rest

ALWAYS = ("roc", "calibration", "confusion", "loss", "auc")
FIGURES = (*ALWAYS, "differences", "effective_rank", "space_items", "space_distances", "swing_scores")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two seeds of a whole run with their report: folders, metrics of the evaluations, manifest."""
    runs = run_paths(tmp_path_factory.mktemp("report"), 2)
    for seed, run in enumerate(runs):
        write_rest(run, seed)
    facts = {
        "rejected": {"rating is no number": 5},
        "read": 1239,
        "users": 30,
        "items": 30,
    }
    source = {"source": "table", "reviews": "mine.csv"}
    Manifest("ingest", source, {}, rows={"reviews": 1234}, facts=facts).write(_made(runs[0].reviews))
    rejected = {"file": "mine.csv", "line": 17, "reason": "rating is no number", "row": "u1,<b>,five"}
    (runs[0].reviews / "rejected.jsonl").write_text(json.dumps(rejected) + "\n")
    evaluations = [write_evaluation(run, seed) for seed, run in enumerate(runs)]
    return runs, evaluations, report_of(runs, list(MODELS), runs[0].report)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(stage, "draw", lambda *_: {})


@pytest.fixture
def runs(reported, tmp_path):
    """A copy to change."""
    paths, evaluations, _ = reported
    shutil.copytree(paths[0].shared, tmp_path / "run")
    return run_paths(tmp_path / "run", 2), copy.deepcopy(evaluations)


def report_of(runs, variants, out):
    settings = {"train.epochs": 3, "prepare.dense": ["a", "b"]}
    folders = manifest_folders(RunConfig(variants=dict.fromkeys(variants, {})), runs)
    return report(runs, variants, folders, out, settings, "dlrrec run --set train.epochs=3")


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
    assert "table, mine.csv · 1,234 reviews · 30 users · 30 items · 70% of those kept liked (from 8)" in words
    assert "reviews rating is no number 5 0.40%" in words
    assert "reviews mine.csv 17 rating is no number u1,<b>,five" in words and "<b>,five" not in page
    assert "dlrrec run --set train.epochs=3" in words and "train.epochs: 3" in words
    assert "prepare.dense: a, b" in words and re.search(r"Report made 20\d\d-\d\d-\d\d", words)
    assert "agreement of price tags with the source's (macro-F1) 0.613" in words
    assert "train: dlrrec 10.5" in words  # seconds: the mean of the seeds
    assert "swing 2.0 301" in words  # memory: the largest


def test_report_is_reused_until_an_evaluation_changes(runs, no_figures):
    paths, _ = runs
    assert report_of(paths, list(MODELS), paths[0].report).reused
    write_evaluation(paths[1], 7)
    assert not report_of(paths, list(MODELS), paths[0].report).reused
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    assert any("a note of seed 7" in note for note in summary["notes"])


def test_one_seed_without_truth_and_without_the_other_stages(tmp_path):
    (run,) = run_paths(tmp_path, 1)
    body = write_evaluation(run, 3, truth=False)
    (run.evaluation / "examples.json").unlink()  # as an earlier version left it
    shutil.rmtree(run.evaluation / "vectors")
    Manifest("prepare", {}, {}, facts=make_facts(users=40, items=30).as_facts()).write(_made(run.shards))
    report_of([run], list(MODELS), run.report)
    summary = json.loads((run.report / "metrics.json").read_text())
    assert summary["models"]["dlrrec"]["auc"] == {
        "mean": body["models"]["dlrrec"]["auc"],
        "sd": None,
        "seeds": [body["models"]["dlrrec"]["auc"]],
    }
    notes = " / ".join(summary["notes"])
    for words in (
        "one seed",
        "no reachable AUC",
        "no metrics.jsonl of 'dlrrec'",
        "no SWING neighbours",
        "no map of them",
    ):
        assert words in notes
    text = format_table(run.report)
    assert "of reachable" not in text and "±" not in text and "true probabilities are unknown" in text
    for name in ALWAYS:
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
    file = paths[1].evaluation / "metrics.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "space"}))
    with pytest.raises(DataError, match="an earlier version made it; run the stage 'evaluate' again"):
        report_of(paths, list(MODELS), tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match="seed-1/evaluation/metrics.json: missing; run the stage 'evaluate'"):
        report_of(paths, list(MODELS), tmp_path / "out")
    write_evaluation(paths[1], 1, protocol="paper")
    with pytest.raises(DataError, match="different protocols .paper, strict."):
        report_of(paths, list(MODELS), tmp_path / "out")
    with pytest.raises(DataError, match="run the stage 'report' first"):
        format_table(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_best_of_a_column_and_the_first_sentence(runs):
    summary = summarize(runs[1], list(MODELS))
    rows = {(g, n): m for g in ("models", "baselines", "peers") for n, m in summary[g].items()}
    aucs, losses = ({row: m[key]["mean"] for row, m in rows.items()} for key in ("auc", "loss"))
    table = ratings(summary)
    assert table.best("auc") == {max(aucs, key=aucs.get)}
    assert table.best("loss") == {min(losses, key=losses.get)}
    assert table.best("fpr") == set()  # never alone
    means = {name: auc for (_, name), auc in aucs.items()}
    gain = means["dlrrec"] - means["item mean"]
    side = "above" if gain > 0 else "below"
    assert f"{abs(gain):.3f} {side} the best other method, item mean" in sentences(summary)[0]
    swapped = summary | {"models": {"bce": summary["models"]["bce"]}}
    assert "below the best other method" in sentences(swapped)[0]


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
        assert "best other method, item mean: +0.045 [+0.005, +0.070], better; of 2 seeds 1 better" in words
        assert (
            "Recall@20 of dlrrec less that of the best other method, EASE: -0.050 [-0.080, -0.020], worse"
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


def test_the_space_and_swing_are_told(reported):
    paths, _, _ = reported
    summary = json.loads((paths[0].report / "metrics.json").read_text())
    assert [len(summary["space"][name][side]) for name in MODELS for side in ("user", "item")] == [2] * 4
    markdown = (paths[0].report / "table.md").read_text()
    page = re.sub(r"\s+", " ", plain((paths[0].report / "index.html").read_text()))
    for words in (markdown, page):
        assert (
            "nearer one in 80% by the content vectors before the towers, 70% by the vectors of dlrrec"
            in words
        )
        assert (
            "Users: how often the own neighbour is nearer, dlrrec less bce: +0.105 [+0.090, +0.130]." in words
        )
    assert "Items: 30, 20 with a SWING neighbour" in page
    assert "dlrrec 0.300 0.900 0.950 70.5% [69.0%, 73.0%] text 7.2 of 32 -3.40 40% of 60%" in page
    assert "content vectors 0.200 0.900 0.950 80.5% [79.0%, 83.0%] text 100.4 – –" in page
    assert "too few users with content in the model: no map of them" in page
    scores = [
        score
        for run in paths
        for scores in read_table(run.swing / "users", schema.NEIGHBORS)["scores"].to_pylist()
        for score in scores
    ]
    found = summary["swing"]["users"]
    assert found["quantiles"] == pytest.approx(np.quantile(scores, (0.1, 0.5, 0.9)))
    assert found["above"]["0.1"][0] == pytest.approx(np.mean(np.array(scores) >= 0.1))
    assert f"≥ 0.1: {found['above']['0.1'][0]:.0%}" in page


def test_the_interval_of_one_seed_is_shown(tmp_path):
    summary = summarize([write_evaluation(run_paths(tmp_path, 1)[0], 0)], list(MODELS))
    assert "dlrrec less bce, likes: +0.020 [+0.010, +0.030]" in format_table(summary)
    assert "item mean: +0.040 [+0.010, +0.070], better" in format_table(summary)


def test_names_cannot_break_the_page(runs):
    summary = summarize(runs[1], list(MODELS))
    summary["models"] = {"<script>x</script>": summary["models"]["dlrrec"]}
    split = Manifest("split", {}, {}, facts={"dropped": {"<i>": 3}})
    origin = Origin(command="<u>", settings={"a": "<s>"})
    page = html_page(summary, {"split": [split]}, {}, origin, EXAMPLES)
    assert not re.search("<(script|i|u|s|1979|7)>", page)
    for name in ("script", "i", "u", "s", "1979", "7"):
        assert f"&lt;{name}&gt;" in page


def test_what_went_wrong_before_is_in_the_notes(runs, no_figures):
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
