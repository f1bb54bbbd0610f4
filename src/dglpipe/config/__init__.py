"""The typed configuration: one dataclass per group, with unit and range of every field.

`parse` converts a composed dictionary to a `Config` once; no other module reads raw dictionaries. A
configuration is an input: do not modify it. This package imports only `dglpipe.errors`, besides
OmegaConf, and does not load torch. Begin reading at `schema.Config`; each group has a file of its
own, `parse` and `build` do the conversion, `instantiate` imports plug-ins.
"""

from __future__ import annotations

from dglpipe.config.checkpoint import CheckpointConfig
from dglpipe.config.data import (
    DATA_SETS,
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    SyntheticConfig,
)
from dglpipe.config.evaluate import EvaluateConfig
from dglpipe.config.head import (
    BEFORE_POOL,
    AnyHeadConfig,
    CnnSrConfig,
    CustomHeadConfig,
    HeadConfig,
)
from dglpipe.config.link import LinkConfig
from dglpipe.config.local import (
    LOCALS,
    AuglocalConfig,
    InfoproConfig,
    LocalConfig,
    ManConfig,
    PredsimConfig,
    TrglConfig,
)
from dglpipe.config.method import (
    METHODS,
    PLACEMENTS,
    READ_RULES,
    AsyncConfig,
    BackpropConfig,
    CustomMethodConfig,
    DdgConfig,
    DniConfig,
    FeaturesReplayConfig,
    MethodConfig,
    SequentialConfig,
)
from dglpipe.config.model import (
    MODEL_FAMILIES,
    CnnConfig,
    CustomModelConfig,
    DniCnnConfig,
    FastCnnConfig,
    ModelConfig,
    ResnetCifarConfig,
    ResnetConfig,
    TimmConfig,
    TorchvisionConfig,
    VggConfig,
)
from dglpipe.config.optim import OPTIMIZERS, AdamConfig, AdamWConfig, OptimizerConfig, SgdConfig
from dglpipe.config.parse import from_yaml, parse, to_tree, to_yaml
from dglpipe.config.pipeline import PipelineConfig
from dglpipe.config.plugin import PluginConfig
from dglpipe.config.precision import PrecisionConfig
from dglpipe.config.probe import ProbeConfig
from dglpipe.config.schedule import (
    SCHEDULES,
    ConstantConfig,
    CosineConfig,
    MultistepConfig,
    ScheduleConfig,
    StepConfig,
    TriangleConfig,
)
from dglpipe.config.schema import Config, StageConfig

__all__ = [
    "BEFORE_POOL",
    "DATA_SETS",
    "LOCALS",
    "METHODS",
    "MODEL_FAMILIES",
    "OPTIMIZERS",
    "PLACEMENTS",
    "READ_RULES",
    "SCHEDULES",
    "AdamConfig",
    "AdamWConfig",
    "AnyHeadConfig",
    "AsyncConfig",
    "AuglocalConfig",
    "BackpropConfig",
    "CheckpointConfig",
    "Cifar10Config",
    "CnnConfig",
    "CnnSrConfig",
    "Config",
    "ConstantConfig",
    "CosineConfig",
    "CustomHeadConfig",
    "CustomMethodConfig",
    "CustomModelConfig",
    "DataConfig",
    "DdgConfig",
    "DigitsConfig",
    "DniCnnConfig",
    "DniConfig",
    "EvaluateConfig",
    "FastCnnConfig",
    "FeaturesReplayConfig",
    "HeadConfig",
    "ImageFolderConfig",
    "InfoproConfig",
    "LinkConfig",
    "LocalConfig",
    "ManConfig",
    "MethodConfig",
    "ModelConfig",
    "MultistepConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "PluginConfig",
    "PrecisionConfig",
    "PredsimConfig",
    "ProbeConfig",
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
    "TrglConfig",
    "TriangleConfig",
    "VggConfig",
    "from_yaml",
    "parse",
    "to_tree",
    "to_yaml",
]
