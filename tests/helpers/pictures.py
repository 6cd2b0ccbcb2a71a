"""A BLIP-2 and a ResNet of few random weights, saved as the real ones are, and pictures to describe."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "pizza",
    "table",
    "wine",
    "dog",
    "salad",
    "on",
    "the",
    "red",
    "beach",
]
SIZE, QUERIES = 32, 4
RESNET_DIM = 24


def tiny_blip2(folder: Path, seed: int = 0) -> Path:
    """Write the model to `folder`; another seed writes other weights."""
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    images = BlipImageProcessor(size={"height": SIZE, "width": SIZE})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config=layers | {"intermediate_size": 32, "image_size": SIZE, "patch_size": 8},
        qformer_config=layers
        | {"intermediate_size": 32, "encoder_hidden_size": 16, "vocab_size": len(tokenizer)},
        text_config=layers
        | {
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "ffn_dim": 32,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config).eval()
    # As they are made, the weights are near zero and see little of a picture.
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(number: int) -> Image.Image:
    """A picture of random blocks, RGB 40 x 50."""
    blocks = np.random.default_rng(number).integers(0, 255, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(10, 0).repeat(10, 1))


def tiny_resnet(folder: Path, seed: int = 0) -> Path:
    """A ResNet of random weights, with vectors of RESNET_DIM numbers."""
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, RESNET_DIM], depths=[1, 1, 1, 1])
    ResNetModel(config).save_pretrained(folder)
    return folder
