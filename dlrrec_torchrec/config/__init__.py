"""The settings of a run: one dataclass a section (`sections`), read from YAML and flags (`read`, `flags`)."""

from dlrrec_torchrec.config.extract_section import ENCODER_DIMS, ExtractConfig
from dlrrec_torchrec.config.read import (
    for_seed,
    from_dict,
    load_config,
    table_config,
    table_settings,
    variant,
)
from dlrrec_torchrec.config.sections import (
    ContrastiveConfig,
    EvaluateConfig,
    IngestConfig,
    ListConfig,
    LlmConfig,
    ModelConfig,
    PicturesConfig,
    PrepareConfig,
    RunConfig,
    SplitConfig,
    SwingStageConfig,
    TrainConfig,
)
from dlrrec_torchrec.config.table_section import KERNELS, SHARDING_TYPES, TableConfig, option

__all__ = [
    "for_seed",
    "from_dict",
    "load_config",
    "table_config",
    "table_settings",
    "variant",
    "ContrastiveConfig",
    "ENCODER_DIMS",
    "EvaluateConfig",
    "ExtractConfig",
    "IngestConfig",
    "KERNELS",
    "ListConfig",
    "LlmConfig",
    "ModelConfig",
    "option",
    "PicturesConfig",
    "PrepareConfig",
    "RunConfig",
    "SHARDING_TYPES",
    "SplitConfig",
    "SwingStageConfig",
    "TableConfig",
    "TrainConfig",
]
