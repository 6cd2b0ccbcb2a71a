"""Which sentence encoders are BERT with mean pooling.

Such models are written out, in `compiled_bert.py` for a CPU and in `torch_bert.py` for a GPU. Both compute
what sentence-transformers does with the same files (tests hold that), in less time, and need neither that
library nor transformers, whose import takes as long as embedding a thousand sentences. Nothing is padded: the
tokens of all texts of a batch are the rows of a matrix product, and attention goes text by text.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

_ALIGNED = 16  # widths that are whole vectors: no loop has a tail
_TRANSFORMER_DEFAULTS = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_BERT_DEFAULTS = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
LAYER = (
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.dense.bias",
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
)
PROJECTIONS = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))


@dataclasses.dataclass(frozen=True)
class BertFiles:
    """Where such a model lies, and its shape. `max_tokens`: longer texts are cut there."""

    tokenizer: Path
    weights: Path
    layers: int
    heads: int
    width: int
    epsilon: float
    max_tokens: int


def find_bert(folder: Path) -> BertFiles | None:
    """The files of a sentence-transformers folder, or None where it is anything but BERT, mean pooling and
    normalisation with the settings that `Bert` computes."""
    try:
        return _find(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # files missing, or of another form
        return None


def _find(folder: Path) -> BertFiles | None:
    modules = _read(folder / "modules.json")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    own = all(module["type"].startswith("sentence_transformers.") for module in modules)
    if not own or kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        return None
    base = folder / modules[0]["path"]
    module, bert = _read(base / "sentence_bert_config.json"), _read(base / "config.json")
    whole = _read(folder / "config_sentence_transformers.json")
    if whole.get("default_prompt_name") or whole.get("truncate_dim"):
        return None
    limit = module.pop("max_seq_length", None)
    if not (_TRANSFORMER_DEFAULTS | module == _TRANSFORMER_DEFAULTS and _mean(folder / modules[1]["path"])):
        return None
    if any(bert.get(name, default) != default for name, default in _BERT_DEFAULTS.items()):
        return None
    words = _read(base / "tokenizer_config.json")
    if not _plain_tokenizer(_read(base / "tokenizer.json"), words):
        return None
    width, heads, layers = bert["hidden_size"], bert["num_attention_heads"], bert["num_hidden_layers"]
    if width % (heads * _ALIGNED) or bert["intermediate_size"] % _ALIGNED:
        return None
    weights = base / "model.safetensors"
    limit = min(limit or words["model_max_length"], bert["max_position_embeddings"])
    if not _holds_weights(weights, layers, width, bert["intermediate_size"], _ids(base), limit):
        return None
    epsilon = bert["layer_norm_eps"]
    return BertFiles(base / "tokenizer.json", weights, layers, heads, width, epsilon, limit)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _mean(pooling: Path) -> bool:
    """Whether the pooling is the mean of all tokens; older files have a flag for each kind."""
    settings = _read(pooling / "config.json")
    flags = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    return settings.get("pooling_mode") == "mean" or flags == ["pooling_mode_mean_tokens"]


def _plain_tokenizer(tokenizer: dict, settings: dict) -> bool:
    """Whether tokenizer.json does what transformers would build from the settings beside it."""
    expected = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    return (
        settings["tokenizer_class"] in ("BertTokenizer", "BertTokenizerFast")
        and tokenizer["model"]["type"] == "WordPiece"
        and tokenizer["normalizer"] == expected
        and tokenizer["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and tokenizer["post_processor"]["type"] in ("TemplateProcessing", "BertProcessing")
        and all(token["special"] for token in tokenizer["added_tokens"])
    )


def _ids(base: Path) -> int:
    """How many ids of tokens there are."""
    tokenizer = _read(base / "tokenizer.json")
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return max(ids) + 1


def _holds_weights(path: Path, layers: int, width: int, wide: int, ids: int, positions: int) -> bool:
    """Whether the file has every weight by its name, in single precision and of its shape: the compiled loops
    check no bounds."""
    with open(path, "rb") as stream:
        tensors = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    shapes = {f"embeddings.LayerNorm.{kind}": [width] for kind in ("weight", "bias")}
    for i in range(layers):
        for name in LAYER:
            rows = wide if name.startswith("intermediate") else width
            columns = [] if "LayerNorm" in name or name.endswith("bias") else [width]
            shapes[f"encoder.layer.{i}.{name}"] = [rows, *(columns and [wide if name[0] == "o" else width])]
        for projection in PROJECTIONS:
            shapes[f"encoder.layer.{i}.{projection}.weight"] = [width, width]
            shapes[f"encoder.layer.{i}.{projection}.bias"] = [width]
    least = {"word": ids, "position": positions, "token_type": 1}
    tables = {f"embeddings.{kind}_embeddings.weight": rows for kind, rows in least.items()}
    return (
        all(tensors[name]["dtype"] == "F32" for name in [*shapes, *tables])
        and all(tensors[name]["shape"] == shape for name, shape in shapes.items())
        and all(tensors[name]["shape"][0] >= rows for name, rows in tables.items())
        and all(tensors[name]["shape"][1:] == [width] for name in tables)
    )
