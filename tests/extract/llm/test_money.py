"""What a run would cost, and stopping before it costs more."""

from __future__ import annotations

import numpy as np
import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract.llm.estimate import estimate
from dlrrec_torchrec.extract.llm.one_budget import one_budget
from dlrrec_torchrec.extract.llm.spending import Budget, Prices
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.store.errors import DataError, Unfinished
from tests.extract.llm.test_asking import forget, run
from tests.extract.test_extract import FakeEncoder, write_split
from tests.helpers.model_server import ModelServer


def world(users=30, items=6):
    return [
        (f"u{u}", f"i{i}", f"The pizza of {u} and {i} was cheap for us.", None)
        for u in range(users)
        for i in range(items)
        if (u * 7 + i * 3) % 4
    ]


def test_the_estimate_counts_what_the_run_then_does(tmp_path):
    server = ModelServer()
    rows = world()
    split = write_split(rows, tmp_path / "split")
    config = ExtractConfig(provider="llm", folds=3)
    with server.running() as url:
        llm = LlmConfig(base_url=url, input_price=1.0, output_price=2.0, input_tokens=200)
        before = estimate(config, llm, split, None, tmp_path / "cache").amounts
        facts = run(tmp_path, url, {"input_tokens": 200}, rows=rows, folds=3).facts["llm"]
        after = estimate(config, llm, split, None, tmp_path / "cache").amounts
    assert before["cross-fitted"].calls == facts["calls"] + facts["calls_known"]
    assert before["cross-fitted"].versions == facts["versions"] and before["cross-fitted"].known == 0
    assert after["cross-fitted"].known == after["cross-fitted"].calls
    assert after["cross-fitted"].input_tokens == 0
    entities = len({u for u, *_ in rows}) + len({i for _, i, *_ in rows})
    assert before["per entity"].versions == entities
    lonely = sum(sum(r[0] == f"u{n}" for r in rows) == 1 for n in range(30))
    assert before["exact"].versions == entities + 2 * len(rows) - lonely
    assert before["per entity"].calls < before["cross-fitted"].calls < before["exact"].calls


def test_items_set_apart_are_estimated_and_asked_about_by_files(tmp_path, capsys):
    """Of the versions of one with few reviews, those that are alike are asked about once."""
    split = write_split(world(6, 3), tmp_path / "split")
    shown = [("u1", "many", f"Its dosa number {n} was cheap.", None) for n in range(3)]
    shown += [("u2", "few", "Its soup was cheap.", None)]
    write_split(shown, tmp_path / "other")
    (tmp_path / "other/train").rename(split / "shown")
    write_split([("u3", "many", "hidden", None), ("u3", "few", "hidden", None)], tmp_path / "another")
    (tmp_path / "another/train").rename(split / "cold")
    server = ModelServer()
    with server.running() as url:
        (tmp_path / "config.yaml").write_text(
            f"extract: {{folds: 2, provider: llm}}\nllm: {{base_url: '{url}', prompts: papers}}\n"
        )
        settings, config = LlmConfig(base_url=url, prompts="papers"), ExtractConfig(provider="llm", folds=2)
        before = estimate(config, settings, split, None, tmp_path / "cache")
        assert before.cold_items == 2 and "3 items, and 2 items set apart" in before.to_text()
        written = ["extract", "write-batch", str(tmp_path / "calls"), "--run-dir", str(tmp_path)]
        assert cli.main(written) == 0
        calls = (tmp_path / "calls").read_text()
        assert sum(f"Its {food}" in calls for food in ("soup", "dosa number 2")) == 2
        assert "hidden" not in calls
        run(tmp_path, url, {"prompts": "papers"})
        after = estimate(config, settings, split, None, tmp_path / "cache").amounts
    per_version = 3  # the papers' questions about items
    asked = (tmp_path / "calls").read_text().count("\n")
    assert before.amounts["cross-fitted"].calls == asked == sum(server.paid.values())
    split.joinpath("cold").rename(tmp_path / "nowhere")
    without = estimate(config, settings, split, None, tmp_path / "none").amounts
    for mode, amount in before.amounts.items():
        assert amount.calls - without[mode].calls == per_version * (2 + 1)  # 1 and 3 reviews; 1 review
    assert after["cross-fitted"].known == after["cross-fitted"].calls


def test_the_command_prints_it_and_sends_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_split(world(), tmp_path / "split")
    words = ["extract", "--estimate", "--run-dir", str(tmp_path)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "0.1 and 0.5 US dollars for a million tokens" in said and "cross-fitted" in said
    assert "With --batch it costs 50% of that" in said
    assert not (tmp_path / "cache").exists() and not (tmp_path / "content").exists()
    assert cli.main([*words, "--llm.model", "mine", "--base-url", "http://x/v1"]) == 0
    assert "nobody told its price" in capsys.readouterr().out
    assert cli.main([*words, "--input-price", "2", "--output-price", "3", "--prompts", "papers"]) == 0
    assert "2 and 3 US dollars" in capsys.readouterr().out


def test_the_papers_size(tmp_path):
    """15,290 items, 28,912 users, 57,005 training rows, of the length of Zomato's reviews."""
    rng = np.random.default_rng(0)
    users, items = rng.permutation(57_005) % 28_912, rng.permutation(57_005) % 15_290
    words = "the food was good and we liked it but they took long to serve".split()
    text = " ".join(words[n % len(words)] for n in range(55))
    rows = [
        (f"u{u}", f"i{i}", f"{n} {text}", None) for n, (u, i) in enumerate(zip(users, items, strict=True))
    ]
    split = write_split(rows, tmp_path / "split")
    found = estimate(ExtractConfig(), LlmConfig(), split, None, tmp_path / "cache")
    said = found.to_text()
    print(said)
    assert (found.users, found.items, found.reviews) == (28_912, 15_290, 57_005)
    cost = {mode: found.prices.cost(a.input_tokens, a.output_tokens) for mode, a in found.amounts.items()}
    assert 3 < cost["per entity"] < cost["cross-fitted"] < cost["exact"] < 40
    assert found.amounts["per entity"].calls == 28_912 + 15_290


def test_a_budget_of_calls_stops_and_the_same_command_goes_on(tmp_path, capsys):
    server = ModelServer()
    rows = world(10, 4)
    write_split(rows, tmp_path / "split")
    with server.running() as url:
        settings = {"base_url": url, "budget_calls": 15, "concurrency": 4}
        made, statuses = [], []
        for _ in range(10):
            try:
                run(tmp_path, url, settings, rows=rows)
                break
            except Unfinished as error:
                statuses.append(str(error))
            made.append(sum(server.paid.values()))
        assert made == [15 * (n + 1) for n in range(len(made))] and len(made) > 1
        assert "the budget of 15 calls would be passed" in statuses[0] and "same command" in statuses[0]
        total = sum(server.paid.values())
        assert total == len(server.paid)  # none was paid twice
        forget(tmp_path)
        run(tmp_path, url, settings, rows=rows)
        assert sum(server.paid.values()) == total


def test_a_spent_budget_has_its_own_exit_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dlrrec_torchrec.extract.stage.SentenceEncoder", lambda *_, **__: FakeEncoder())
    server = ModelServer()
    write_split(world(4, 2), tmp_path / "split")
    with server.running() as url:
        words = [
            "extract",
            "--provider",
            "llm",
            "--base-url",
            url,
            "--run-dir",
            str(tmp_path),
            "--folds",
            "2",
        ]
        assert cli.main([*words, "--budget-calls", "1"]) == 3
        assert "the budget of 1 calls" in capsys.readouterr().err
        assert cli.main([*words, "--budget", "5"]) == 2
        assert "nobody told the price of 'gpt-6-luna'" in capsys.readouterr().err
    assert sum(server.paid.values()) == 1


def test_money_and_tokens_are_counted_with_what_is_under_way():
    prices = Prices(1.0, 2.0, "ours")  # US dollars for a million
    budget = Budget(LlmConfig(budget=0.004), prices)
    budget.reserve(1000, 500)  # 0.002
    budget.reserve(1000, 500)
    with pytest.raises(Unfinished, match="the budget of 0.004 US dollars"):
        budget.reserve(1, 0)
    budget.settle((1000, 500), (600, 100))  # it took less
    budget.reserve(1, 0)
    budget.settle((1000, 500), None)
    assert budget.facts["calls"] == 1 and budget.facts["us_dollars"] == pytest.approx(0.0008)
    limited = Budget(LlmConfig(budget_tokens=100), None)
    limited.reserve(40, 60)
    with pytest.raises(Unfinished, match="100 tokens"):
        limited.reserve(0, 1)
    with pytest.raises(DataError, match="--budget-calls or --budget-tokens"):
        Budget(LlmConfig(budget=1.0), None)


def test_all_kinds_of_calls_of_a_command_have_one_budget():
    """Texts at one price and vectors at another; of the next seed too, but not of the next command."""
    settings = LlmConfig(budget=0.01)
    for _ in range(2):  # commands
        with one_budget():
            texts = Budget(settings, Prices(1.0, 2.0, "of texts"))
            texts.reserve(1000, 500)  # 0.002
            texts.settle((1000, 500), (1000, 500))
            with one_budget():  # a stage of the command
                vectors = Budget(settings, Prices(0.5, 0.0, "of vectors"))
                vectors.reserve(10_000, 0)  # 0.005
                vectors.settle((10_000, 0), (10_000, 0))
                next_seed = Budget(settings, Prices(1.0, 2.0, "of texts"))
                next_seed.reserve(1000, 500)
                with pytest.raises(Unfinished, match="0.007 US dollars used by 2 calls, 1 more under way"):
                    next_seed.reserve(1002, 500)
            assert (texts.facts["us_dollars"], vectors.facts["us_dollars"]) == (0.002, 0.005)
            assert texts.facts["calls"] == vectors.facts["calls"] == 1 and next_seed.facts["calls"] == 0
    Budget(settings, Prices(1.0, 2.0, "of texts")).reserve(4000, 2000)  # outside, each has its own


def test_the_command_counts_texts_and_vectors_together(tmp_path, monkeypatch):
    seen = []

    class Encoder(FakeEncoder):
        def encode_batches(self, texts):
            budget = Budget(LlmConfig(budget_calls=1), None)
            seen.append(budget._command.used.calls)
            return super().encode_batches(texts)

    server = ModelServer()
    split = write_split(world(3, 2), tmp_path / "split")
    with server.running() as url:
        extract(
            ExtractConfig(provider="llm", folds=2),
            split,
            tmp_path / "none",
            tmp_path / "content",
            tmp_path / "cache",
            Encoder(),
            llm=LlmConfig(base_url=url),
        )
    assert seen and seen[-1] == sum(server.paid.values())
