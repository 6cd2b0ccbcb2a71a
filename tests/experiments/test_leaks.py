"""Leaks made on purpose: each opens what it says, and nothing else, in both directions."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import PrepareConfig, RunConfig, load_config
from dlrrec_torchrec.experiments.eight_leaks import LEAKS, SCENARIOS, Known
from dlrrec_torchrec.experiments.leaks import make_leaky
from dlrrec_torchrec.experiments.leaky_shards import VIEWS, compose
from dlrrec_torchrec.experiments.open_leaks import OPEN, open_leaks
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.schema import SPLITS
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.reviews import random_rows, write_reviews
from tests.helpers.worlds import World, entity_table, random_vector, random_world, split_table

DENSE = ["item_count", "user_mean", "item_mean", "price", "user_count"]
USER_MEAN, ITEM_MEAN = 1, 2  # places among the dense columns
seeds = st.integers(0, 2**32 - 1)
knowns = st.builds(Known, *[st.booleans()] * 5)


# --- shards


def viewed(world: World, root: Path, statistics: str = "folds") -> dict[str, Path]:
    """The shards of every view of a world. Neighbours of the view `all` are in another order."""
    shards = {}
    for view, parts in VIEWS.items():
        of = {part: [row for name in names for row in getattr(world, name)] for part, names in parts.items()}
        if view == "all":
            for side in ("user", "item"):
                lists = getattr(world, f"{side}_neighbours")
                of[f"{side}_neighbours"] = {k: ranked[::-1] for k, ranked in lists.items()}
        paths = dataclasses.replace(world, **of).write(root / view)
        config = PrepareConfig(dense=DENSE, affinity=False, statistics=statistics, smoothing=0.0)
        prepare(config, paths.split, paths.content, paths.swing, paths.items, paths.shards)
        shards[view] = paths.shards
    return shards


def composed(world: World, known: Known) -> dict[str, dict[tuple[str, str], dict[str, np.ndarray]]]:
    """part -> (user, item) -> column -> numbers; and "entities"."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        out = RunPaths(root / "out", root / "out")
        compose(viewed(world, root), known, out.shards)
        ids = {side: entity_table(out, side)["id"].to_pylist() for side in ("user", "item")}
        rows = {}
        for part in SPLITS:
            table = split_table(out, part)
            codes = [table[side].to_pylist() for side in ("user", "item")]
            columns = {
                name: [np.ravel(value) for value in table[name].to_pylist()] for name in table.column_names
            }
            rows[part] = {
                (ids["user"][u], ids["item"][i]): {name: of[n] for name, of in columns.items()}
                for n, (u, i) in enumerate(zip(*codes, strict=True))
            }
            assert len(rows[part]) == table.num_rows
    return rows


def plain_world(seed: int) -> World:
    return dataclasses.replace(
        random_world(seed, users=5, items=4, rows=12, val=3, test=3, dims=(4, 3)), metadata={}
    )


@given(seeds, knowns)
@settings(max_examples=8)
def test_means_and_vectors_against_plain_loops(seed, known):
    world = plain_world(seed)
    rows = composed(world, known)
    everything = [*world.train, *world.val, *world.test]
    for part in SPLITS:
        for review in getattr(world, part):
            row = rows[part][review.user, review.item]
            for side, place in (("user", USER_MEAN), ("item", ITEM_MEAN)):
                seen = _seen(world, part, side, review, known.own_rating, known.tested_ratings)
                ratings = [other.rating for other in seen]
                mean = (np.mean(ratings) - 1) / 4 * 2 - 1 if ratings else 0.0
                assert row["dense"][place] == pytest.approx(mean, abs=1e-5)
                seen = _seen(world, part, side, review, known.own_content, known.tested_content)
                total = sum((o.text.astype(np.float64) for o in seen if o.text is not None), np.zeros(4))
                norm = np.linalg.norm(total)
                expected = total / norm if norm > 0 else total
                np.testing.assert_allclose(row[f"{side}_text"], expected, atol=2e-3)
    assert sum(map(len, rows.values())) == len(everything)


def _seen(world, part, side, review, own, tested):
    """The reviews that a row's features are to be made of."""
    pool = [*world.train, *(world.val + world.test if tested else [])]
    entity = [other for other in pool if getattr(other, side) == getattr(review, side)]
    return [other for other in entity if part != "train" or own or other.fold != review.fold]


@given(seeds, knowns)
@settings(max_examples=8)
def test_a_tested_row_changes_what_the_leak_says_and_nothing_else(seed, known):
    world = plain_world(seed)
    assume(world.test)
    changed = dataclasses.replace(world.test[0], rating=5.5 - world.test[0].rating / 2)
    changed = dataclasses.replace(changed, text=random_vector(np.random.default_rng(seed), 4))
    other = dataclasses.replace(world, test=[changed, *world.test[1:]])
    pair = changed.user, changed.item
    before, after = composed(world, known), composed(other, known)
    own = before["test"][pair], after["test"][pair]
    for row in own:
        del row["label"], row["rating"]
    moved = {name for name in own[0] if not np.array_equal(own[0][name], own[1][name])}
    assert not (moved & {"user_positives", "item_positives"})  # by ids alone
    for side in ("user", "item"):
        assert (f"{side}_text" in moved) == known.tested_content
    means = [own[k]["dense"][[USER_MEAN, ITEM_MEAN]] for k in (0, 1)]
    assert np.array_equal(*means) == (not known.tested_ratings)
    if not (known.tested_content or known.tested_ratings):
        assert _same(before, after)


@given(seeds, knowns)
@settings(max_examples=8)
def test_a_training_row_knows_itself_where_the_leak_says_so(seed, known):
    world = plain_world(seed)
    old = world.train[0]
    vector = random_vector(np.random.default_rng(seed), 4)
    changed = dataclasses.replace(old, rating=5.5 - old.rating / 2, text=vector)
    pair = old.user, old.item
    before = composed(world, known)["train"][pair]
    after = composed(dataclasses.replace(world, train=[changed, *world.train[1:]]), known)["train"][pair]
    for side in ("user", "item"):
        assert np.array_equal(before[f"{side}_text"], after[f"{side}_text"]) == (not known.own_content)
    means = [row["dense"][[USER_MEAN, ITEM_MEAN]] for row in (before, after)]
    assert np.array_equal(*means) == (not known.own_rating)


def _same(before, after) -> bool:
    return all(
        np.array_equal(row[name], after[part][pair][name])
        for part, rows in before.items()
        for pair, row in rows.items()
        for name in row
    )


@pytest.mark.parametrize("statistics", ["folds", "row"])
def test_without_a_leak_the_shards_are_prepares(tmp_path, statistics):
    shards = viewed(random_world(5, users=6, items=5, rows=20, dims=(4, 3)), tmp_path, statistics)
    compose(shards, Known(), tmp_path / "out")
    facts = ShardFacts.read(shards["base"])
    assert ShardFacts.read(tmp_path / "out") == facts
    for part in SPLITS:
        schema = facts.row_schema()
        assert read_table(tmp_path / "out" / part, schema).equals(read_table(shards["base"] / part, schema))
    for side in ("user", "item"):
        tables = [
            read_table(folder / "entities" / f"{side}s", facts.entity_schema(side))
            for folder in (tmp_path / "out", shards["base"])
        ]
        assert tables[0].equals(tables[1])


def test_neighbours_are_those_of_all_rows(tmp_path):
    shards = viewed(random_world(5, users=6, items=5, rows=20, dims=(4, 3)), tmp_path)
    out = RunPaths(tmp_path / "out", tmp_path / "out")
    compose(shards, Known(tested_pairs=True), out.shards)
    facts = ShardFacts.read(shards["base"])
    for side in ("user", "item"):
        positives = {
            name: read_table(folder / "entities" / f"{side}s", facts.entity_schema(side))["positives"]
            for name, folder in {**shards, "out": out.shards}.items()
        }
        assert positives["out"].equals(positives["all"]) and not positives["out"].equals(positives["base"])
    for part in SPLITS:
        table = split_table(out, part)
        for side in ("user", "item"):
            of = entity_table(out, side)["positives"].to_pylist()
            for code, found in zip(
                table[side].to_pylist(), table[f"{side}_positives"].to_pylist(), strict=True
            ):
                assert [c for c in found if c >= 0] == of[code]


def test_shards_of_other_rows_are_refused(tmp_path):
    shards = viewed(random_world(5, users=6, items=5, rows=20, dims=(4, 3)), tmp_path / "one")
    others = viewed(random_world(6, users=6, items=5, rows=20, dims=(4, 3)), tmp_path / "two")
    with pytest.raises(DataError, match="not of the same rows|has other"):
        compose(shards | {"all": others["all"]}, Known(tested_ratings=True), tmp_path / "out")


# --- from reviews to shards


class WordEncoder:
    """Random unit vectors that depend on the text alone."""

    identity, dim = "words", 16

    def encode_batches(self, texts):
        for n, text in enumerate(texts):
            numbers = np.random.default_rng(list(text.encode())).normal(size=16)
            yield np.asarray([n]), (numbers / np.linalg.norm(numbers)).astype(np.float32)[None]


CHANGED_TEXT = "Nothing like it was ever written before. The quince tasted of thunder."


def made(
    root: Path, scenario: str, changed: tuple[str, str] | None = None, fold_by: str = "random"
) -> dict[str, dict]:
    """part -> (user, item) -> what a row of the shards knows besides its label, first copy."""
    rows = random_rows(7, users=25, items=12)
    texts = [
        f"The dish with the number {n} was fine. Place {row[1]} is {n % 5} stars."
        for n, row in enumerate(rows)
    ]
    images = [[f"{n}-{k}.png" for k in range(n % 3)] or None for n in range(len(rows))]
    captions = [of and [f"a plate with the number {n}" for _ in of] for n, of in enumerate(images)]
    for n, (user, item, rating) in enumerate(rows):
        if (user, item) == changed:
            rows[n], texts[n] = (user, item, 5.5 - rating), CHANGED_TEXT
    root.mkdir(parents=True)
    times = [int(n) for n in np.random.default_rng(0).permutation(len(rows))]
    write_reviews(
        rows, root / "data" / "reviews", text=texts, images=images, captions=captions, timestamp=times
    )
    settings = {"split.positive_rating": 3.5, "prepare.positives": 3, "extract.fold_by": fold_by}
    config = load_config(None, settings | ({"prepare.statistics": "ordered"} if fold_by == "time" else {}))
    group = root / "group"
    group.mkdir()
    for name in ("reviews", "items", "cache"):
        (group / name).symlink_to(root / "data" / name)
    paths = RunPaths(group, group)
    make_leaky(SCENARIOS[scenario], config, paths, WordEncoder())
    opened = {verdict.leak for verdict in open_leaks(config, paths) if verdict.state == OPEN}
    named = set(scenario.split("-")[0].split("+")) - {"clean", "f"}  # (f) is in no folder of a split
    assert opened == named, scenario
    ids = {side: entity_table(paths, side)["id"].to_pylist() for side in ("user", "item")}
    found: dict[str, dict] = {}
    for part in SPLITS:
        found[part] = {}
        for row in split_table(paths, part).drop_columns(["label", "rating"]).to_pylist():
            found[part].setdefault((ids["user"][row["user"]], ids["item"][row["item"]]), row)
    return found


# scenario -> does a test row's own review change what the row knows? a training row's?
SELF_KNOWN = {
    "clean": (False, False),
    "a": (False, True),
    "b": (True, False),
    "a+b": (True, True),
    "c": (False, False),
    "d-own": (False, True),
    "d": (True, True),
    "a+b+c+d": (True, True),
    "g": (False, False),
    "h": (True, False),
    "g+h": (True, False),
    "a+d+h": (True, True),
    "a+b+c+d+h": (True, True),
}


@pytest.mark.parametrize("scenario", SELF_KNOWN)
def test_a_row_knows_its_own_review_only_by_the_leak(tmp_path, scenario):
    plain = made(tmp_path / "plain", scenario)
    tested = min(plain["test"])
    trained = min(set(plain["train"]) - set(plain["test"]) - set(plain["val"]))
    for part, pair, expected in zip(("test", "train"), (tested, trained), SELF_KNOWN[scenario], strict=True):
        other = made(tmp_path / part, scenario, pair)
        assert plain.keys() == other.keys() and plain[part].keys() == other[part].keys()
        assert (plain[part][pair] != other[part][pair]) == expected, part


def test_folds_may_be_blocks_of_time(tmp_path):
    plain = made(tmp_path / "plain", "a+b", fold_by="time")
    pair = min(plain["test"])
    other = made(tmp_path / "other", "a+b", pair, fold_by="time")
    assert plain["test"][pair] != other["test"][pair]
    clean = [made(tmp_path / f"clean-{n}", "clean", of, fold_by="time") for n, of in enumerate((None, pair))]
    assert clean[0] == clean[1]


def test_every_scenario_that_keeps_the_rows_is_tried_above():
    same_rows = {name for name, scenario in SCENARIOS.items() if not scenario.other_rows}
    assert same_rows - {"h-half", "a+d+h-half"} == set(SELF_KNOWN)


@pytest.mark.parametrize("scenario", ["f", "h-pictures", "h-pictured", "h-half", "a+d+h", "a+d+h-pictured"])
def test_copies_are_the_same_row_where_features_are_by_id(tmp_path, scenario):
    rows = made(tmp_path / "out", scenario)
    both = rows["train"].keys() & rows["test"].keys()
    assert rows["test"] and bool(both) == ("h" in scenario)
    alike = [rows["train"][pair] == rows["test"][pair] for pair in both]
    assert all(alike) if "a+d" in scenario else not any(alike)


def test_no_setting_of_a_run_leads_to_a_leak():
    names = {f.name for f in dataclasses.fields(RunConfig)}
    assert not names & {"leak", "leaks", "leakage"}
    letters = {letter for name in SCENARIOS if name != "clean" for letter in name.split("-")[0].split("+")}
    assert letters == set(LEAKS) - {"e"}  # (e) is the protocol's
