"""The settings of a run: one dataclass a section (`sections`), read from YAML and flags (`read`, `flags`)."""

from dlrrec_torchrec.config.read import (
    for_seed,
    from_dict,
    load_config,
    table_config,
    table_settings,
    variant,
)
from dlrrec_torchrec.config.sections import (
    ENCODER_DIMS,
    KERNELS,
    SHARDING_TYPES,
    ContrastiveConfig,
    ExtractConfig,
    IngestConfig,
    ModelConfig,
    PrepareConfig,
    RunConfig,
    SplitConfig,
    SwingStageConfig,
    TableConfig,
    TrainConfig,
    option,
)

__all__ = [
    "for_seed",
    "from_dict",
    "load_config",
    "table_config",
    "table_settings",
    "variant",
    "ContrastiveConfig",
    "ENCODER_DIMS",
    "ExtractConfig",
    "IngestConfig",
    "KERNELS",
    "ModelConfig",
    "option",
    "PrepareConfig",
    "RunConfig",
    "SHARDING_TYPES",
    "SplitConfig",
    "SwingStageConfig",
    "TableConfig",
    "TrainConfig",
]
