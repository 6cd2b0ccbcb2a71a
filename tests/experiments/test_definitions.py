"""What experiments are: settings that can be used, cells that can be compared, weights that are counted."""

from __future__ import annotations

import dataclasses

import pytest

from dlrrec_torchrec.config import RunConfig, load_config, variant
from dlrrec_torchrec.config.read import with_values
from dlrrec_torchrec.experiments.ablations import TEXT_DIM, TOP, equal_top, weights_of
from dlrrec_torchrec.experiments.catalogue import EXPERIMENTS
from dlrrec_torchrec.experiments.cells import check_experiment, data_key, jobs
from dlrrec_torchrec.experiments.definitions import ANY, Cell, Contrast, Options
from dlrrec_torchrec.experiments.gathered import Outcome, pairs
from dlrrec_torchrec.experiments.measures import COSTS, METRICS
from dlrrec_torchrec.experiments.papers import (
    EPOCHS,
    IMAGE,
    MMREC,
    PAPERS_MODEL,
    TABLE1,
    TEXT,
    mmrec,
    table1,
    v0,
    v0_groups,
)
from dlrrec_torchrec.models.build import build_model
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.assemble import parameter_counts
from tests.helpers.shards import DIM, make_facts

TEXTS_ONLY = {"prepare.modalities": list(TEXT)}


def options(quick=False, images=True, **settings):
    """Of two data, the second with pictures or not."""
    plain = load_config(None, {"ingest.size": "tiny"})
    other = load_config(None, {} if images else TEXTS_ONLY)
    return Options({"first": plain, "second": other}, quick=quick, **settings)


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("images", [True, False], ids=["pictures", "texts"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_can_be_trained_and_compared(name, quick, images, tmp_path):
    experiment = EXPERIMENTS[name](options(quick, images, seeds=2))
    check_experiment(experiment)
    assert experiment.name == name and experiment.title and experiment.question.endswith("?")
    folders = [job.measured for job in jobs(experiment, tmp_path)]
    assert len(folders) == len(set(folders)) == 2 * len(list(experiment.cells()))
    assert set(experiment.metrics) | set(experiment.compared) | set(COSTS) <= METRICS.keys()
    assert not METRICS.keys() & set(experiment.factors)  # they are columns of one table
    outcomes = [
        Outcome(group.levels_of(cell), cell.published, {}, {}, 0, 0) for group, cell in experiment.cells()
    ]
    assert len({tuple(sorted(outcome.levels.items())) for outcome in outcomes}) == len(outcomes)
    for contrast in experiment.contrasts:
        found = list(pairs(contrast, outcomes))
        assert found or quick, contrast
        for outcome, base in found:
            for factor in ("protocol", "data"):
                assert outcome.levels[factor] == base.levels[factor]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_groups_of_one_data_share_their_reviews(name):
    groups = EXPERIMENTS[name](options()).groups
    keys = {group.levels["data"]: data_key(group.run_config) for group in groups}
    assert all(data_key(group.run_config) == keys[group.levels["data"]] for group in groups)
    assert len(set(keys.values())) == len(keys)


def test_protocols_differ_in_what_a_row_may_see_and_in_nothing_else():
    for group in table1(options()).groups:
        paper = group.levels["protocol"] == "paper"
        assert group.config.protocol == group.levels["protocol"]
        assert group.config.prepare.statistics == ("row" if paper else "folds")
    one, other = table1(dataclasses.replace(options(), data={"x": RunConfig()})).groups
    same = with_values(one.config, {"protocol": "strict", "prepare.statistics": "folds"})
    assert same == other.config and one.cells == other.cells
    ordered = load_config(None, {"extract.fold_by": "time", "prepare.statistics": "ordered"})
    strict = table1(Options({"x": ordered}, protocols=("strict",))).groups[0]
    assert strict.config.prepare.statistics == "ordered"


def test_what_the_command_line_gives_holds_in_every_group_but_not_over_cells():
    given = load_config(None, {"train.lr": 0.5, "model.dropout": 0.2, "train.epochs": 3})
    asked = Options({"x": given}, given=("train.lr", "model.dropout", "train.epochs"))
    for name in ("table1", "mmrec", "ablation"):
        for group in EXPERIMENTS[name](asked).groups:
            assert (group.config.train.lr, group.config.train.epochs) == (0.5, 3)
            assert group.config.model.dropout == 0.2
            dropouts = {variant(group.run_config, cell.name).model.dropout for cell in group.cells}
            assert dropouts == ({0.1, 0.3, 0.5} if name == "mmrec" else {0.2})
    assert table1(options()).groups[0].config.train.epochs == EPOCHS


def test_published_numbers_stand_beside_their_cells():
    numbers = [cell.published for _, cell in table1(options()).cells() if cell.published]
    assert len(numbers) == 4 * len(TABLE1)  # two protocols of two data
    cells = list(mmrec(dataclasses.replace(options(), protocols=("paper",))).cells())
    assert len(cells) == 2 * len(MMREC) == 24
    for group, cell in cells:
        levels = group.levels_of(cell)
        train, test = MMREC[levels["model"], levels["weights"], float(levels["dropout"])]
        assert [cell.published[f"train_{name}"] for name in ("accuracy", "fpr", "loss")] == list(train)
        assert [cell.published[name] for name in ("accuracy", "fpr", "loss")] == list(test)
    # DLRREC's row of V0 is MMREC's of basic weights and dropout 0.5, which the other rows share therefore.
    accuracy, rate, _ = MMREC["proposed", "basic", 0.5][1]
    assert TABLE1["V0", "text + image", "BCE"] == pytest.approx((accuracy, rate), abs=5e-4)
    assert PAPERS_MODEL["model.dropout"] == 0.5 and PAPERS_MODEL["train.class_weights"] == "normalized"


def test_pixels_of_pictures_are_for_the_base_alone():
    given = "pictures.picture_vectors"
    resnet = load_config(None, {"ingest.size": "tiny", given: "resnet"})
    experiment = mmrec(Options({"first": resnet}, seeds=1, given=(given,)))
    kinds = {group.levels["model"]: group.config.pictures.picture_vectors for group in experiment.groups}
    assert kinds == {"base": "resnet", "proposed": "captions"}
    assert not any("ResNet" in note for note in experiment.notes)


def test_without_pictures_cells_with_them_are_left_out_and_that_is_told():
    experiment = table1(options(images=False))
    kinds = {(group.levels["data"], cell.levels["inputs"]) for group, cell in experiment.cells()}
    assert ("first", "image") in kinds and ("second", "image") not in kinds and ("second", "text") in kinds
    assert any(note.startswith("second: no picture") for note in experiment.notes)


def test_what_v0_reduces_together():
    assert v0_groups([*TEXT, *IMAGE]) == [list(TEXT), list(IMAGE)]
    assert v0([*TEXT, *IMAGE])["model"]["joined"] == ["user_text+item_text"]
    assert v0(list(IMAGE))["model"]["joined"] == []
    base = next(group for group in mmrec(options()).groups if group.levels["model"] == "base")
    assert base.cells[0].changes["model"]["joined"] == ["user_text+item_text+item_image"]
    assert base.cells[0].changes["model"]["category"] is False and "price" not in base.config.prepare.dense


@pytest.mark.parametrize("inputs", [TEXT, IMAGE, (*TEXT, *IMAGE)], ids=["text", "image", "both"])
def test_weights_are_counted_as_they_are(inputs):
    """Against the models themselves; and the widened V0 has as many as DLRREC, nearly."""
    assert TEXT_DIM == DIM
    counted = {}
    for name, changes in (("dlrrec", {"model": {"modalities": list(inputs)}}), ("v0", v0(list(inputs)))):
        top = TOP if name == "dlrrec" else equal_top(inputs)
        config = with_values(RunConfig(), PAPERS_MODEL | {"model.over_arch": top})
        config.variants["cell"] = changes
        settings = variant(config, "cell").model
        model = build_model(settings, batch_spec(settings, make_facts(dense=6, modalities=inputs)), "meta")
        counted[name] = parameter_counts(model)
        groups = [[part] for part in inputs] if name == "dlrrec" else v0_groups(inputs)
        assert counted[name]["dense"] == weights_of(inputs, groups, top)
        assert counted[name]["tables"] == 180 * 32
        assert counted[name]["bytes"] == 4 * (counted[name]["dense"] + counted[name]["tables"])
    assert counted["v0"]["dense"] == pytest.approx(counted["dlrrec"]["dense"], rel=2e-3)


def test_domains_need_several_data():
    with pytest.raises(DataError, match="give two or more: --data FILE FILE"):
        EXPERIMENTS["domains"](Options({"x": RunConfig()}))


def test_all_that_is_wrong_is_told_at_once():
    experiment = table1(options())
    wrong = dataclasses.replace(experiment.groups[0], cells=(Cell("a", {}, {"model": {"dropout": 2.0}}),))
    other = dataclasses.replace(
        experiment.groups[1], config=with_values(experiment.groups[1].config, {"train.lr": -1.0})
    )
    with pytest.raises(DataError) as caught:
        check_experiment(dataclasses.replace(experiment, groups=(wrong, other)))
    assert "model.dropout" in str(caught.value) and "train.lr" in str(caught.value)
    named = dataclasses.replace(experiment.groups[0], name="../up")
    with pytest.raises(DataError, match="becomes the name of a folder"):
        check_experiment(dataclasses.replace(experiment, groups=(named,)))


def outcome(**levels):
    return Outcome(levels, {}, {}, {}, 0, 0)


def test_a_level_that_means_nothing_is_compared_with_all():
    rec = outcome(terms="L_rec", w=ANY, protocol="paper")
    cells = [
        rec,
        outcome(terms="both", w="1", protocol="paper"),
        outcome(terms="both", w="2", protocol="paper"),
    ]
    strict = outcome(terms="both", w="1", protocol="strict")
    found = list(pairs(Contrast("terms", "L_rec"), [*cells, strict]))
    assert [(one.levels["w"], other is rec) for one, other in found] == [("1", True), ("2", True)]
    assert not list(pairs(Contrast("w", "3"), cells)) and not list(pairs(Contrast("no", "x"), cells))
