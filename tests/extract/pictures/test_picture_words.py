"""Pictures in the extraction stage: whose captions count, what is recorded, and what is said."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig, LlmConfig, PicturesConfig
from dlrrec_torchrec.extract.pictures import picture_words as words_module
from dlrrec_torchrec.extract.pictures.captions import SAYS_NOTHING
from dlrrec_torchrec.extract.pictures.opening import PictureError
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError, Unfinished
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest
from tests.extract.pictures.test_caption_pictures import Colours
from tests.extract.test_extract import FakeEncoder, vector
from tests.helpers.pictures import picture, tiny_blip2, tiny_resnet


def write_rows(folder, pictures, captions):
    """Training rows of one user, one for each entry."""
    n = len(pictures)
    table = pa.table(
        {
            "user_id": ["u"] * n,
            "item_id": [f"i{k}" for k in range(n)],
            "rating": np.full(n, 4, np.float32),
            "text": pa.nulls(n, pa.string()),
            "timestamp": pa.nulls(n, pa.int64()),
            "images": pa.array(pictures, pa.list_(pa.string())),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "split": pa.nulls(n, pa.string()),
            "label": np.ones(n, np.float32),
        }
    ).cast(schema.SPLIT)
    write_table(table, folder / "train")
    Manifest("split", {"rows": repr((pictures, captions))}, {}).write(folder)
    return folder


def run(root, pictures, captions, settings, **more):
    split = write_rows(root / "split", pictures, captions)
    folders = split, root / "no-items", root / "content", root / "cache"
    return extract(ExtractConfig(folds=2), *folders, FakeEncoder(), pictures=settings, **more)


def image_vectors(root):
    return pq.read_table(root / "content" / "reviews")["image_vector"].to_pylist()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for red in (100, 150, 200):
        Image.new("RGB", (4, 4), (red, 1, 2)).save(folder / f"{red}.png")
    return folder


def colours(monkeypatch):
    told = Colours()
    monkeypatch.setattr(words_module, "make_captioner", lambda *_: told)
    monkeypatch.setattr("dlrrec_torchrec.extract.stage.make_captioner", lambda *_: told)
    return told


def test_pictures_without_captions_are_described(tmp_path, photos, monkeypatch, capsys):
    told = colours(monkeypatch)
    pictures = [["100.png"], ["150.png", "200.png"], None, ["200.png"], ["none.png"]]
    captions = [None, ["", "a photo of a cake"], ["a photo of tea"], ["pie", "cream"], None]
    manifest = run(tmp_path, pictures, captions, PicturesConfig(captioner="blip2"), picture_folder=photos)
    found = image_vectors(tmp_path)

    def mean(*texts):
        return np.mean([vector(text).astype(np.float16) for text in texts], axis=0)

    expected = [mean("red 100"), mean("a cake", "red 150"), mean("tea"), mean("pie", "cream"), None]
    for vectors, right in zip(found, expected, strict=True):
        assert (vectors is None) == (right is None)
        if right is not None:
            np.testing.assert_allclose(vectors, right, atol=2e-3)
    assert sum(size for size, _ in told.calls) == 2  # the captions that were given are kept
    assert manifest.facts["pictures"] == {"described": 2, "problems": {"no such file": 1}}
    rows = {row["source"]: row for row in pq.read_table(tmp_path / "content" / "pictures").to_pylist()}
    assert rows["100.png"]["caption"] == "red 100" and rows["100.png"]["captioner"] == "colours"
    assert rows["none.png"]["problem"] == "no such file" and rows["none.png"]["caption"] is None
    said = capsys.readouterr().err
    assert "1 of 3 pictures have no caption: no such file (1)" in said


def test_pictures_that_nobody_describes_are_told(tmp_path, capsys):
    manifest = run(tmp_path, [["a.png"], None, ["b.png"]], [None, None, ["tea"]], PicturesConfig())
    assert manifest.facts["pictures"] == {"without_captions": 1}
    assert "1 reviews or items have pictures without captions" in capsys.readouterr().err
    assert "captioner" not in manifest.config["provenance"]
    assert not (tmp_path / "content" / "pictures").exists()


def test_none_that_can_be_read_is_an_error_with_a_way_out(tmp_path, photos, monkeypatch):
    colours(monkeypatch)
    settings = PicturesConfig(captioner="blip2")
    pictures = [["x.png"], ["http://127.0.0.1/a.png"]]
    with pytest.raises(DataError, match="none of 2 pictures could be read, as 'x.png': no such file"):
        run(tmp_path, pictures, [None, None], settings, picture_folder=photos)
    with pytest.raises(DataError, match=r"--picture-folder\) .*nowhere: there is no such folder"):
        run(tmp_path, pictures, [None, None], PicturesConfig(picture_folder=str(tmp_path / "nowhere")))
    named = PicturesConfig(captioner="blip2", picture_folder=str(photos))
    run(tmp_path, [["100.png"]], [None], named, picture_folder=tmp_path)  # the named folder counts
    assert image_vectors(tmp_path)[0] is not None


def test_the_captioner_is_part_of_what_content_is(tmp_path, photos, monkeypatch):
    told = colours(monkeypatch)
    settings = PicturesConfig(captioner="blip2")
    first = run(tmp_path, [["100.png"]], [None], settings, picture_folder=photos)
    told.identity = "others"
    second = run(tmp_path, [["100.png"]], [None], settings, picture_folder=photos)
    assert first.fingerprint != second.fingerprint
    assert second.config["provenance"]["captioner"] == "others"


def test_blip2_describes_the_pictures_of_a_run(tmp_path):
    """Weights, processor, generation and cache as they are, on random weights."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        picture(number).save(photos / f"{number}.png")
    model = tiny_blip2(tmp_path / "model")
    settings = PicturesConfig(captioner="blip2", captioner_model=str(model), picture_batch=3)
    pictures = [[f"{n}.png"] for n in range(4)]
    manifest = run(tmp_path, pictures, [None] * 4, settings, picture_folder=photos)
    facts = manifest.facts["pictures"]
    assert facts["described"] + sum(facts["problems"].values()) == 4
    rows = pq.read_table(tmp_path / "content" / "pictures").to_pylist()
    assert all(row["captioner"].startswith("blip2 ") and row["sha256"] for row in rows)
    kept = [vectors is not None for vectors in image_vectors(tmp_path)]
    assert kept == [row["caption"] is not None for row in rows]


def test_of_given_captions_only_as_many_as_pictures_leave_a_gap(tmp_path):
    words = PictureWords(PicturesConfig(), None, None, tmp_path)
    found = words([["tea", "a photo of a"], ["tea"], [], None], [["a", "b"], ["a", "b"], ["c"], None])
    assert found == [["tea"], ["tea"], [], []]
    assert words.record(tmp_path) == {"without_captions": 2}
    assert json.dumps(LlmConfig().model)  # nothing of the language model is needed for that


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    """docs/pictures.md: by BLIP-2 and ResNet with random weights, and by a server that is not there."""
    page = (Path(__file__).parents[3] / "docs" / "pictures.md").read_text(encoding="utf-8")
    first, second, third = (
        shlex.split(line)
        for block in re.findall(r"```bash\n(.*?)```", page, re.S)
        for line in block.splitlines()
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dlrrec_torchrec.extract.stage.SentenceEncoder", lambda *_, **__: FakeEncoder())
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "0.png")
    write_rows(tmp_path / "runs/demo/split", [["0.png"], None], [None, ["tea"]])
    model = tiny_blip2(tmp_path / "model")
    assert cli.main([*first[1:], "--captioner-model", str(model)]) == 0
    kept = pq.read_table(tmp_path / "runs/demo/content/pictures").to_pylist()
    assert [row["source"] for row in kept] == ["0.png"]
    assert cli.main([*second[1:], "--retries", "0", "--breaker", "1", "--timeout", "5"]) == 3
    assert "calls in a row failed" in capsys.readouterr().err
    tiny_resnet(tmp_path / "models" / "resnet-50")
    assert cli.main(third[1:]) == 0
    assert pq.read_table(tmp_path / "runs/demo/content/pictures").to_pylist()[0]["problem"] is None


PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "restaurant-photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs here")
def test_real_photographs_go_through(tmp_path):
    names = sorted(path.name for path in PHOTOS.iterdir())
    model = tiny_blip2(tmp_path / "model")
    settings = PicturesConfig(captioner="blip2", captioner_model=str(model), picture_folder=str(PHOTOS))
    manifest = run(tmp_path, [[name] for name in names], [None] * len(names), settings)
    facts = manifest.facts["pictures"]
    assert facts["described"] + facts["problems"].get(SAYS_NOTHING, 0) == len(names)


def test_a_captioner_that_never_answers_ends_unfinished(tmp_path, photos, monkeypatch):
    """Else content without captions would count as up to date."""
    told = colours(monkeypatch)
    told.captions = lambda pictures, again=False: [PictureError("no answer of the model")] * len(pictures)
    with pytest.raises(Unfinished, match=r"none of 1 was described: no answer of the model \(1\)"):
        run(tmp_path, [["100.png"]], [None], PicturesConfig(captioner="vision"), picture_folder=photos)
    assert not (tmp_path / "content").exists()


@pytest.mark.parametrize("value", ["0", "all", "false", "null", "-1"])
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PicturesConfig)])
def test_values_that_a_setting_cannot_have_are_named(tmp_path, capsys, field, value):
    """Texts may be any word; nothing else takes any of these."""
    given, kind = yaml.safe_load(value), type(getattr(PicturesConfig(), field))
    choices = next(f for f in dataclasses.fields(PicturesConfig) if f.name == field).metadata.get("choices")
    if kind is type(given) and not choices and field != "private_links" and kind is str:
        pytest.skip("a name or a folder")
    write_rows(tmp_path / "split", [None], [None])
    (tmp_path / "config.yaml").write_text(f"extract: {{folds: 2}}\npictures: {{{field}: {value}}}\n")
    status = cli.main(["extract", "--run-dir", str(tmp_path)])
    said = capsys.readouterr().err
    if field == "private_links" and value == "false":
        assert status == 0
        return
    flag = field.replace("_", "-")
    assert status == 2 and f"pictures.{field} (--{flag})" in said and "Traceback" not in said
