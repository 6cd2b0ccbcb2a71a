"""Vectors of pictures by ResNet: transformers' own with random weights, against plain steps."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ResNetModel

from dlrrec_torchrec.config import ExtractConfig, PicturesConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.extract.pictures.resnet import ResNetVectors, pixels
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.prepare.inputs import map_vectors
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest, stage_output
from tests.helpers.pictures import RESNET_DIM as DIM
from tests.helpers.pictures import picture, tiny_resnet


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_resnet(tmp_path_factory.mktemp("resnet") / "model"))


@pytest.fixture(scope="module")
def resnet(model):
    return ResNetVectors(model, device="cpu")


def by_hand(folder, image):
    """Scale, crop and normalise the whole picture; average the last map."""
    image = image.convert("RGB")
    scale = 256 / min(image.size)
    whole = image.resize([max(224, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    values = np.asarray(whole.crop((left, top, left + 224, top + 224)), np.float32) / 255
    values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    network = ResNetModel.from_pretrained(folder).eval()
    with torch.no_grad():
        seen = torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))
        features = network(seen).last_hidden_state.mean(dim=(2, 3))[0].numpy()
    return features / np.linalg.norm(features)


def test_vectors_are_the_pooled_features(model, resnet):
    pictures = [picture(number) for number in range(3)] + [picture(3).resize((90, 41))]
    vectors = resnet.vectors(pictures)
    assert resnet.dim == DIM and vectors.shape == (4, DIM)
    for vector, image in zip(vectors, pictures, strict=True):
        assert vector @ by_hand(model, image) > 0.9999
        np.testing.assert_allclose(vector, resnet.vectors([image])[0], atol=1e-5)
    ((number, described),) = resnet.describe([pictures], 1)
    stored = np.stack([np.frombuffer(one, np.float16) for one in described])
    np.testing.assert_array_equal(stored, vectors.astype(np.float16))
    assert number == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700))
def test_a_picture_of_any_form_is_seen_whole_in_its_short_side(width, height):
    assert pixels(Image.new("L", (width, height), 128)).shape == (3, 224, 224)
    assert np.ptp(pixels(Image.new("RGB", (width, height), (10, 20, 30))), axis=(1, 2)).max() < 1e-5


def test_what_is_no_resnet_is_named(tmp_path, model):
    with pytest.raises(DataError, match=r"resnet_model \(--resnet-model\).*holds no ResNet"):
        ResNetVectors(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_sizes": [2]}')
    with pytest.raises(DataError, match="it is a bert"):
        ResNetVectors(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "hidden_sizes": [2]}')
    with pytest.raises(DataError, match="holds no ResNet"):
        ResNetVectors(str(tmp_path), "cpu").vectors([picture(0)])
    other = tiny_resnet(tmp_path / "other", seed=1)
    assert ResNetVectors(str(other)).identity != ResNetVectors(model).identity
    with pytest.raises(DataError, match=r"pictures.captioner.*set it to none"):
        check_settings(PicturesConfig(captioner="blip2", picture_vectors="resnet"))


def test_a_batch_that_does_not_fit_is_halved(resnet, monkeypatch):
    pictures = [picture(number) for number in range(5)]
    expected, real = resnet.vectors(pictures), type(resnet._model).forward

    def forward(self, values):
        if len(values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, values)

    monkeypatch.setattr(type(resnet._model), "forward", forward)
    np.testing.assert_allclose(resnet.vectors(pictures), expected, atol=1e-5)
    monkeypatch.setattr(type(resnet._model), "forward", lambda self, values: forward(self, [0, 0, 0]))
    with pytest.raises(DataError, match="no memory"):
        resnet.vectors(pictures)


def write_inputs(root, photos):
    """Three reviews with pictures, one without, and the metadata of an item that has one."""
    for name, image in photos.items():
        data = io.BytesIO()
        image.save(data, "PNG")
        (root / name).write_bytes(data.getvalue())
    (root / "broken.png").write_bytes(b"no picture")
    images = [["one.png", "two.png"], ["two.png"], ["broken.png", "copy.png"], None]
    rows = [
        {"user_id": f"u{n}", "item_id": item, "text": "Good food.", "images": images[n], "label": 1.0}
        for n, item in enumerate(["a", "a", "b", "b"])
    ]
    with stage_output(Manifest("split", {}, {}), root / "split") as folder:
        write_table(pa.Table.from_pylist(rows, schema=schema.SPLIT), folder / "train")
    with stage_output(Manifest("ingest-items", {}, {}), root / "items") as folder:
        items = [{"item_id": "b", "images": ["one.png"]}]
        write_table(pa.Table.from_pylist(items, schema=schema.ITEMS), folder)


def test_content_has_the_vectors_of_pictures(tmp_path, model, resnet, capsys, monkeypatch):
    photos = {"one.png": picture(1), "two.png": picture(2), "copy.png": picture(1)}
    write_inputs(tmp_path, photos)
    chosen = PicturesConfig(picture_vectors="resnet", resnet_model=model)
    arguments = (tmp_path / "split", tmp_path / "items", tmp_path / "content", tmp_path / "cache")
    manifest = extract(ExtractConfig(folds=2), *arguments, pictures=chosen, picture_folder=tmp_path)
    assert manifest.facts["vector_dims"] == {"text": 384, "image": DIM}
    assert manifest.facts["image_encoder"] == model
    assert manifest.facts["pictures"]["described"] == 3
    assert "1 of 4 pictures have no vector" in capsys.readouterr().err

    one, two = resnet.vectors([photos["one.png"], photos["two.png"]]).astype(np.float16).astype(np.float32)
    stored = map_vectors(tmp_path / "content" / "reviews", "image_vector", DIM, tmp_path / "scratch")
    expected = [(one + two) / 2, two, one, np.zeros(DIM)]
    np.testing.assert_allclose(stored, expected, atol=2e-3)
    kind = schema.with_vectors(schema.METADATA_CONTENT, {"image_vector": DIM})
    own = read_table(tmp_path / "content" / "metadata", kind).to_pylist()
    assert [row["id"] for row in own] == ["b"]
    np.testing.assert_allclose(own[0]["image_vector"], one, atol=2e-3)

    # A second run makes no vector again.
    monkeypatch.setattr(ResNetVectors, "vectors", lambda *_: pytest.fail("made again"))
    kind = schema.with_vectors(pa.schema([]), {"image_vector": DIM})
    first = read_table(tmp_path / "content" / "reviews", kind)
    shutil.rmtree(tmp_path / "content")
    extract(ExtractConfig(folds=2), *arguments, pictures=chosen, picture_folder=tmp_path)
    assert read_table(tmp_path / "content" / "reviews", kind).equals(first)
