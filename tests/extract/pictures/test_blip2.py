"""BLIP-2 through transformers' own loading and generation, with random weights."""

import numpy as np
import pytest
import torch
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from dlrrec_torchrec.extract.pictures.blip2 import Blip2Captioner
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.pictures import WORDS, picture, tiny_blip2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("blip2") / "model")


@pytest.fixture(scope="module")
def captioner(folder):
    return Blip2Captioner(str(folder), device="cpu")


def by_hand(folder, image, steps=30):
    """Greedy words from vision model, Q-Former and language model, one picture and one word at a time."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = Blip2Processor.from_pretrained(folder)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.vision_model(pixels).last_hidden_state
        queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
        prefix = model.language_projection(queries)
        ids = [model.config.text_config.bos_token_id]
        for _ in range(steps):
            words = model.get_input_embeddings()(torch.tensor([ids]))
            logits = model.language_model(inputs_embeds=torch.cat([prefix, words], dim=1)).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == model.config.text_config.eos_token_id:
                break
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_captions_are_the_greedy_words(folder, captioner):
    pictures = [picture(number) for number in range(5)]
    found = captioner.captions(pictures)
    assert found == [by_hand(folder, image) for image in pictures]
    assert len(set(found)) > 1 and all(set(text.split()) <= set(WORDS) for text in found)


def test_a_caption_does_not_depend_on_the_batch(captioner):
    pictures = [picture(number) for number in range(7)]
    together = captioner.captions(pictures)
    alone = [captioner.captions([image])[0] for image in pictures]
    order = np.random.default_rng(0).permutation(7)
    assert together == alone
    assert captioner.captions([pictures[n] for n in order]) == [together[n] for n in order]


def test_the_second_try_is_longer_and_repeats_less(captioner):
    again = captioner.captions([picture(1), picture(2)], again=True)
    for text in again:
        assert len(text.split()) >= 5 and len(set(text.split())) > 2


def test_the_identity_changes_with_the_weights(folder, captioner, tmp_path):
    assert Blip2Captioner(str(folder), device="cpu").identity == captioner.identity
    assert Blip2Captioner(str(tiny_blip2(tmp_path / "other", seed=1)), "cpu").identity != captioner.identity


def test_a_batch_that_does_not_fit_is_halved(captioner, monkeypatch):
    """As where a GPU's memory ends: batches of two and less fit."""
    captioner.load()
    model = captioner._model
    expected = captioner.captions([picture(n) for n in range(7)])
    real, sizes = type(model).generate, []

    def generate(self, pixel_values, **settings):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, pixel_values=pixel_values, **settings)

    monkeypatch.setattr(type(model), "generate", generate)
    assert captioner.captions([picture(n) for n in range(7)]) == expected and sizes[0] == 7

    def never(self, **_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "generate", never)
    with pytest.raises(DataError, match="no memory on cpu for a single picture"):
        captioner.captions([picture(1), picture(2)])


def test_what_is_no_blip2_says_so(tmp_path, folder):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds no BLIP-2 model that can be loaded"):
        Blip2Captioner(str(tmp_path), "cpu").captions([picture(0)])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes()[: 100 if path.suffix == ".safetensors" else None])
    with pytest.raises(DataError, match="holds no BLIP-2 model"):
        Blip2Captioner(str(damaged), "cpu").captions([picture(0)])
