"""Content of items without training rows: of their metadata and the reviews that are shown, nothing else."""

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import PicturesConfig
from dlrrec_torchrec.extract.new_items import write_cold
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords
from dlrrec_torchrec.extract.providers.offline import OfflineProvider
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.schema import with_vectors
from tests.extract.test_extract import vector

TEXTS = {
    "a": ["Great sushi here.", "We had sushi.", "Slow service.", "Too loud."],
    "b": ["Nice pizza."],
    "c": [],
}
METADATA = {"a": {"text": "A sushi bar."}, "c": {"categories": ["Thai"]}}


def embed(texts, path):
    return np.array([vector(text) for text in texts], np.float16).reshape(-1, 384)


def content(tmp_path, name, test_text, from_items=False):
    rows = [
        {"user_id": f"u{n}", "item_id": item, "text": text, "captions": ["a plate"] if item == "b" else None}
        for item, texts in TEXTS.items()
        for n, text in enumerate(texts[:3])
    ]
    write_table(pa.Table.from_pylist(rows, schema=schema.SPLIT), tmp_path / name / "shown")
    rows = [{"user_id": "u9", "item_id": item, "text": test_text} for item in TEXTS]
    write_table(pa.Table.from_pylist(rows, schema=schema.SPLIT), tmp_path / name / "cold")
    known = lambda items: [METADATA.get(item, {}) for item in items]  # noqa: E731
    out = tmp_path / name / "out"
    captions = PictureWords(PicturesConfig(), None, None, tmp_path)
    (scratch := tmp_path / name / "scratch").mkdir()
    settings = (OfflineProvider(), known, from_items, 11, scratch)
    assert write_cold(tmp_path / name, out, embed, captions, *settings) == 9
    kind = with_vectors(schema.COLD_CONTENT, {"text_vector": 384, "image_vector": 384})
    return {(row["id"], row["shown"]): row for row in read_table(out, kind).to_pylist()}


def test_what_is_known_is_metadata_and_the_first_reviews(tmp_path):
    rows = content(tmp_path, "one", "Best burgers.")
    assert set(rows) == {(item, number) for item in "abc" for number in (0, 1, 3)}
    for number in (0, 1, 3):
        total = sum(vector(text) for text in [*TEXTS["a"][:number], "A sushi bar."])
        np.testing.assert_allclose(
            np.array(rows["a", number]["text_vector"], float), total / np.linalg.norm(total), atol=2e-3
        )
    assert rows["b", 0]["text_vector"] is None and rows["b", 0]["image_vector"] is None
    assert (
        rows["b", 1]["image_vector"] is not None
        and rows["b", 1]["text_vector"] == rows["b", 3]["text_vector"]
    )
    assert rows["c", 3]["text_vector"] is None and rows["c", 3]["categories"] == ["Thai"]
    assert rows["b", 0]["categories"] == [] and rows["b", 1]["categories"]


def test_the_rows_that_are_tested_say_nothing(tmp_path):
    assert content(tmp_path, "one", "Best burgers.") == content(tmp_path, "two", "Awful noodles, cheap beer.")


def test_categories_of_the_metadata_alone(tmp_path):
    rows = content(tmp_path, "items", "Best burgers.", from_items=True)
    assert rows["b", 3]["categories"] == [] and rows["c", 0]["categories"] == ["Thai"]
