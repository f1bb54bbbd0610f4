"""The typed schema of every setting, with its unit and its range.

YAML becomes these objects once, at the edge (`parse`), and nothing below reads a raw
dictionary. Besides `cli/` this is the only module that knows OmegaConf.
"""

from __future__ import annotations

from dglpipe.config.data import (
    DATA_SETS,
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    SyntheticConfig,
)
from dglpipe.config.method import (
    METHODS,
    PLACEMENTS,
    READ_RULES,
    AsyncConfig,
    BackpropConfig,
    CustomMethodConfig,
    MethodConfig,
    SequentialConfig,
)
from dglpipe.config.model import (
    MODEL_FAMILIES,
    CnnConfig,
    CustomModelConfig,
    ModelConfig,
    ResnetCifarConfig,
    ResnetConfig,
    TimmConfig,
    TorchvisionConfig,
    VggConfig,
)
from dglpipe.config.optim import (
    OPTIMIZERS,
    SCHEDULES,
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    HeadConfig,
    MultistepConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    SgdConfig,
    StepConfig,
)
from dglpipe.config.parse import from_yaml, parse, to_tree, to_yaml
from dglpipe.config.pipeline import CheckpointConfig, EvaluateConfig, LinkConfig, PipelineConfig
from dglpipe.config.plugin import PluginConfig
from dglpipe.config.schema import Config, StageConfig

__all__ = [
    "DATA_SETS",
    "METHODS",
    "MODEL_FAMILIES",
    "OPTIMIZERS",
    "PLACEMENTS",
    "READ_RULES",
    "SCHEDULES",
    "AdamConfig",
    "AdamWConfig",
    "AsyncConfig",
    "BackpropConfig",
    "CheckpointConfig",
    "Cifar10Config",
    "CnnConfig",
    "Config",
    "ConstantConfig",
    "CosineConfig",
    "CustomMethodConfig",
    "CustomModelConfig",
    "DataConfig",
    "DigitsConfig",
    "EvaluateConfig",
    "HeadConfig",
    "ImageFolderConfig",
    "LinkConfig",
    "MethodConfig",
    "ModelConfig",
    "MultistepConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "PluginConfig",
    "PrecisionConfig",
    "ResnetCifarConfig",
    "ResnetConfig",
    "ScheduleConfig",
    "SequentialConfig",
    "SgdConfig",
    "StageConfig",
    "StepConfig",
    "SyntheticConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "VggConfig",
    "from_yaml",
    "parse",
    "to_tree",
    "to_yaml",
]
