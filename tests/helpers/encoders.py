"""Small sentence encoders with random weights, made without a download."""

from __future__ import annotations

from pathlib import Path


def random_encoder(
    folder: Path,
    width: int = 768,
    heads: int = 12,
    layers: int = 1,
    pooling: str = "mean",
    architecture: str = "bert",
) -> None:
    """A sentence-transformers model: letters for words, at most 32 tokens of a text, weights far apart.

    Args:
        architecture: "bert" or "distilbert".
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        DistilBertConfig,
        DistilBertModel,
    )

    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (parts / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    if architecture == "bert":
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(parts)
    else:
        config = DistilBertConfig(
            vocab_size=len(words),
            dim=width,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=64,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        DistilBertModel(config).save_pretrained(parts)
    BertTokenizerFast(str(parts / "vocab.txt")).save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=32)
    SentenceTransformer(modules=[transformer, Pooling(width, pooling)], device="cpu").save(str(folder))
