"""The typed schema of every setting, with its unit and its range.

YAML becomes these objects once, at the edge (`parse`), and nothing below reads a raw
dictionary. Besides `cli/` this is the only module that knows OmegaConf.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dglpipe.errors import ConfigError

T = TypeVar("T")


def _require(holds: bool, key: str, got: object, allowed: str, hint: str = "") -> None:
    if not holds:
        raise ConfigError(key, got, allowed, hint)


def _require_number(key: str, value: float, low: float, high: float = math.inf) -> None:
    kind = "a whole number" if isinstance(value, int) else "a number"
    allowed = f"{kind} from {low}" + ("" if high == math.inf else f" to {high}")
    _require(math.isfinite(value) and low <= value <= high, key, value, allowed)


def _require_positive(key: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, key, value, "a number above 0")


def _require_name(key: str, value: str, names: Sequence[str]) -> None:
    _require(value in names, key, value, ", ".join(names))


@dataclass(kw_only=True, slots=True)
class CnnConfig:
    """The plain convolution networks of the paper."""

    family: str = "cnn"
    name: str = "cnn6"
    width: int = 32
    """Channels of the first layer; the others are 2 or 4 times as wide."""
    widths: list[int] | None = None
    """Channels of every layer, in place of `width`."""
    pools: list[int] | None = None
    """Layers, counted from 0, in front of which a 2x2 max-pool stands; null: 1 and 3."""
    dropout: float = 0.0
    """Probability that a channel is dropped behind each layer."""

    def __post_init__(self) -> None:
        _require_name("model.name", self.name, ("cnn4", "cnn6"))
        _require_number("model.width", self.width, 1)
        layers = int(self.name[3:])
        if self.widths is not None:
            fits = len(self.widths) == layers and min(self.widths) >= 1
            _require(fits, "model.widths", self.widths, f"{layers} numbers from 1")
        if self.pools is not None:
            ordered = sorted(set(self.pools)) == self.pools
            inside = all(0 < pool < layers for pool in self.pools)
            _require(
                ordered and inside, "model.pools", self.pools, f"rising numbers 1..{layers - 1}"
            )
        _require_number("model.dropout", self.dropout, 0, 0.99)


@dataclass(kw_only=True, slots=True)
class VggConfig:
    """torchvision's VGG networks with batch norm."""

    family: str = "vgg"
    name: str = "vgg11_bn"
    dropout: float = 0.5
    """Probability in the classifier; 0 is the paper's."""

    def __post_init__(self) -> None:
        names = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
        _require_name("model.name", self.name, names)
        _require_number("model.dropout", self.dropout, 0, 0.99)


@dataclass(kw_only=True, slots=True)
class ResnetConfig:
    """torchvision's ResNets (ImageNet stem)."""

    family: str = "resnet"
    name: str = "resnet18"

    def __post_init__(self) -> None:
        names = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        _require_name("model.name", self.name, names)


@dataclass(kw_only=True, slots=True)
class ResnetCifarConfig:
    """ResNets for 32x32 images with option-A shortcuts."""

    family: str = "resnet_cifar"
    name: str = "resnet20_cifar"

    def __post_init__(self) -> None:
        names = ("resnet20_cifar", "resnet56_cifar", "resnet110_cifar")
        _require_name("model.name", self.name, names)


@dataclass(kw_only=True, slots=True)
class PlugInConfig:
    """A network, head, loss or data set from outside the package."""

    family: str = "custom"
    name: str = "custom"
    target: str = ""
    """Where the builder is: `package.module:builder` or `package.module.builder`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the builder."""

    def __post_init__(self) -> None:
        _require(
            bool(self.target),
            f"{self.name}.target",
            self.target,
            "package.module:builder of something importable",
        )


ModelConfig = CnnConfig | VggConfig | ResnetConfig | ResnetCifarConfig | PlugInConfig
MODEL_FAMILIES: dict[str, type[Any]] = {
    "cnn": CnnConfig,
    "vgg": VggConfig,
    "resnet": ResnetConfig,
    "resnet_cifar": ResnetCifarConfig,
}


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """An auxiliary head (paper.md, section 3)."""

    name: str = "mlp_sr"

    def __post_init__(self) -> None:
        _require_name("head.name", self.name, ("mlp_sr", "mlp", "cnn", "linear"))


@dataclass(kw_only=True, slots=True)
class DigitsConfig:
    """1,797 embedded images of handwritten digits, 8x8 pixels, 1 channel."""

    name: str = "digits"
    image_size: int = 8
    """Side of the images in pixels; other sides than 8 are interpolated."""

    def __post_init__(self) -> None:
        _require_number("data.image_size", self.image_size, 1)


@dataclass(kw_only=True, slots=True)
class Cifar10Config:
    """torchvision's CIFAR-10: random crop with padding 4 and flip in training."""

    name: str = "cifar10"
    root: str = "data"
    """Folder that holds `cifar-10-batches-py`."""
    download: bool = False
    """Fetch the data set when it is not there."""
    image_size: int = 32
    """Side of the images in pixels; other sides than 32 are interpolated."""
    augment: bool = True

    def __post_init__(self) -> None:
        _require_number("data.image_size", self.image_size, 1)


@dataclass(kw_only=True, slots=True)
class ImageFolderConfig:
    """`train/<class>/*` and `val/<class>/*` or `test/<class>/*` under `root`."""

    name: str = "image_folder"
    root: str = ""
    transform: str = "cifar"
    """`cifar`: random crop with padding 4 and flip; `imagenet`: RandomResizedCrop and
    flip, at test time the shorter side to 8/7 of `image_size`, then the centre."""
    image_size: int | None = None
    """Side of the images in pixels; null: that of the first training image, 224 with
    `imagenet`."""
    augment: bool = True
    workers: int | None = None
    """Decoding processes for images that are not held in memory; null: one a core."""
    memory_limit_mb: int = 4096
    """Images are decoded once into memory if all of them fit into this, in MiB."""

    def __post_init__(self) -> None:
        _require(bool(self.root), "data.root", self.root, "a folder with train/ and val/ or test/")
        _require_name("data.transform", self.transform, ("cifar", "imagenet"))
        if self.image_size is not None:
            _require_number("data.image_size", self.image_size, 1)
        if self.workers is not None:
            _require_number("data.workers", self.workers, 0)
        _require_number("data.memory_limit_mb", self.memory_limit_mb, 0)


@dataclass(kw_only=True, slots=True)
class SyntheticConfig:
    """Seeded images of any shape: a pattern a class, plus noise."""

    name: str = "synthetic"
    samples: int = 1024
    """Training images; a quarter as many again are for testing."""
    classes: int = 10
    channels: int = 3
    image_size: int = 32
    """Side in pixels."""
    noise: float = 1.0
    """Standard deviation of the noise; that of the patterns is 1."""

    def __post_init__(self) -> None:
        _require_number("data.samples", self.samples, 1)
        _require_number("data.classes", self.classes, 2)
        _require_number("data.channels", self.channels, 1)
        _require_number("data.image_size", self.image_size, 1)
        _require_number("data.noise", self.noise, 0)


DataConfig = DigitsConfig | Cifar10Config | ImageFolderConfig | SyntheticConfig | PlugInConfig
DATA_SETS: dict[str, type[Any]] = {
    "digits": DigitsConfig,
    "cifar10": Cifar10Config,
    "image_folder": ImageFolderConfig,
    "synthetic": SyntheticConfig,
}


@dataclass(kw_only=True, slots=True)
class SgdConfig:
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip: float | None = None
    """Largest norm of a stage's gradient; null: not clipped."""

    def __post_init__(self) -> None:
        _check_optimizer(self.lr, self.weight_decay, self.clip)
        _require_number("optimizer.momentum", self.momentum, 0, 1)


@dataclass(kw_only=True, slots=True)
class AdamConfig:
    """Adam (L2 penalty) or AdamW (decoupled weight decay)."""

    name: str = "adam"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    """Largest norm of a stage's gradient; null: not clipped."""

    def __post_init__(self) -> None:
        _check_optimizer(self.lr, self.weight_decay, self.clip)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(fits, "optimizer.betas", self.betas, "two numbers from 0 to below 1")
        _require_positive("optimizer.eps", self.eps)


def _check_optimizer(lr: float, weight_decay: float, clip: float | None) -> None:
    _require_positive("optimizer.lr", lr)
    _require_number("optimizer.weight_decay", weight_decay, 0)
    if clip is not None:
        _require_positive("optimizer.clip", clip)


OptimizerConfig = SgdConfig | AdamConfig
OPTIMIZERS: dict[str, type[Any]] = {"sgd": SgdConfig, "adam": AdamConfig, "adamw": AdamConfig}


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over the run; `schedule.py` has the formulas."""

    name: str = "cosine"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value."""
    every: int = 15
    """`step`: epochs between two drops."""
    milestones: list[int] = field(default_factory=list)
    """`multistep`: epochs, counted from 1, after which the rate drops."""
    factor: float = 0.2
    """`step`, `multistep`: what a drop multiplies the rate by."""
    final: float = 0.0
    """`cosine`: share of the rate that is left at the end."""

    def __post_init__(self) -> None:
        _require_name("schedule.name", self.name, ("constant", "step", "multistep", "cosine"))
        _require_number("schedule.warmup_steps", self.warmup_steps, 0)
        _require_number("schedule.every", self.every, 1)
        rising = sorted(set(self.milestones)) == self.milestones
        inside = all(milestone >= 1 for milestone in self.milestones)
        _require(rising and inside, "schedule.milestones", self.milestones, "rising numbers from 1")
        _require_number("schedule.factor", self.factor, 0, 1)
        _require_number("schedule.final", self.final, 0, 1)


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """How the stages learn."""

    name: str = "dgl"
    loss: Any = "cross_entropy"
    """The local loss: `cross_entropy`, or a plug-in (`target` and `args`)."""

    def __post_init__(self) -> None:
        _require_name("method.name", self.name, ("dgl",))
        if isinstance(self.loss, Mapping):
            self.loss = _plug_in("method.loss", self.loss)
        elif not isinstance(self.loss, PlugInConfig):
            _require_name("method.loss", self.loss, ("cross_entropy",))


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    """Number format of forward and backward; weights stay fp32."""

    name: str = "fp32"

    def __post_init__(self) -> None:
        _require_name("precision.name", self.name, ("fp32", "bf16", "fp16"))


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """The chain: how many stages, on how many processes, cut where."""

    stages: int | None = None
    """K; null: 2, under torchrun world size / R."""
    processes: int | None = None
    """P; null: K, under torchrun world size / R."""
    replicas: int = 1
    """R, data-parallel copies of the whole chain."""
    split: Any = "even"
    """`even`, or the list of the first segment of every stage but the first."""
    threads: int | None = None
    """CPU threads a process; null: max(1, cores // (P x R))."""
    depth: int = 2
    """D: messages sent and not yet taken, at most, on each link."""
    backend: str = "auto"
    """`auto` (nccl with a GPU a process, else gloo), `gloo`, `nccl`."""
    checked: bool = False
    """Poison receive buffers until they are waited for and checksum what is being sent:
    finds misuse of buffers, costs time."""

    def __post_init__(self) -> None:
        for key in ("stages", "processes", "threads"):
            value = getattr(self, key)
            if value is not None:
                _require_number(f"pipeline.{key}", value, 1)
        _require_number("pipeline.replicas", self.replicas, 1)
        _require_number("pipeline.depth", self.depth, 1)
        _require_name("pipeline.backend", self.backend, ("auto", "gloo", "nccl"))
        if isinstance(self.split, Sequence) and not isinstance(self.split, str):
            numbers = all(isinstance(at, int) and not isinstance(at, bool) for at in self.split)
            _require(numbers, "pipeline.split", list(self.split), "a list of whole numbers")
        else:
            allowed = "even, or the list of the first segment of every stage but the first"
            _require(self.split == "even", "pipeline.split", self.split, allowed)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Evaluation on the test split, through the pipeline."""

    every: int = 1
    """Epochs between two evaluations; 0: only after the last step, where one always is."""
    batch_size: int | None = None
    """Rows of a test batch over all replicas; null: `batch_size`."""

    def __post_init__(self) -> None:
        _require_number("evaluate.every", self.every, 0)
        if self.batch_size is not None:
            _require_number("evaluate.batch_size", self.batch_size, 1)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """What survives a kill."""

    every: int = 0
    """Steps between two checkpoints; 0: none."""
    keep: int = 2
    """Complete checkpoints that are kept."""

    def __post_init__(self) -> None:
        _require_number("checkpoint.every", self.every, 0)
        _require_number("checkpoint.keep", self.keep, 1)


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """What can differ from stage to stage."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    head: HeadConfig | PlugInConfig
    precision: PrecisionConfig


@dataclass(kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig
    head: HeadConfig | PlugInConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    method: MethodConfig
    precision: PrecisionConfig
    pipeline: PipelineConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    per_stage: list[dict[str, Any]]
    """Partial settings of `optimizer`, `schedule`, `head`, `precision`, one a stage."""
    epochs: int
    """Passes over the training split."""
    max_steps: int | None
    """Steps after which training ends even inside an epoch; null: no limit."""
    batch_size: int
    """Rows of an optimizer step over all replicas."""
    seed: int
    log_every: int
    """Steps between two training lines of a stage."""
    resume: str
    """`never`, or `auto`: go on from the last complete checkpoint of `run_dir`."""
    timeout_s: float
    """Seconds after which a process that waits for another gives up."""
    deterministic: bool
    """Refuse operations that are not deterministic."""
    label_smoothing: float
    run_dir: str | None
    """Directory of the results; null: `runs/<date>_<time>`."""

    def __post_init__(self) -> None:
        _require_number("epochs", self.epochs, 1)
        if self.max_steps is not None:
            _require_number("max_steps", self.max_steps, 1)
        _require_number("batch_size", self.batch_size, 1)
        _require_number("seed", self.seed, 0, 2**32 - 1)
        _require_number("log_every", self.log_every, 1)
        _require_name("resume", self.resume, ("never", "auto"))
        _require_positive("timeout_s", self.timeout_s)
        _require_number("label_smoothing", self.label_smoothing, 0, 1)

    def stage(self, j: int) -> StageConfig:
        """The settings of stage `j`: its entry of `per_stage` over the common ones."""
        common = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "head": self.head,
            "precision": self.precision,
        }
        own = self.per_stage[j] if self.per_stage else {}
        parts = {
            group: _overlay(group, base, own.get(group), f"per_stage[{j}].{group}")
            for group, base in common.items()
        }
        return StageConfig(**parts)


def parse(tree: Mapping[str, Any]) -> Config:
    """Turns a composed configuration into typed objects.

    Raises:
        ConfigError: a key that does not exist, a value of the wrong type or out of range.
    """
    values = dict(tree)
    known = {item.name for item in dataclasses.fields(Config)}
    _refuse_unknown("", values, known)
    missing = sorted(known - values.keys())
    _require(not missing, missing[0] if missing else "", "nothing", "a value")
    groups = {
        "model": _choose("model", values.pop("model"), "family", MODEL_FAMILIES),
        "head": _choose("head", values.pop("head"), "name", _HEADS),
        "data": _choose("data", values.pop("data"), "name", DATA_SETS),
        "optimizer": _choose("optimizer", values.pop("optimizer"), "name", OPTIMIZERS),
    }
    for group, schema in _SINGLE.items():
        groups[group] = _build(schema, values.pop(group), group)
    rest = _build(_Scalars, values, "")
    scalars = {item.name: getattr(rest, item.name) for item in dataclasses.fields(_Scalars)}
    config = Config(**groups, **scalars)
    _check_per_stage(config)
    return config


def to_tree(config: Config) -> dict[str, Any]:
    """The plain dictionary that `parse` turns back into an equal `config`."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The text of `config.yaml`."""
    return OmegaConf.to_yaml(OmegaConf.create(to_tree(config)))


def from_yaml(text: str) -> Config:
    """Reads what `to_yaml` wrote."""
    tree = OmegaConf.to_container(OmegaConf.create(text))
    _require(isinstance(tree, dict), "config.yaml", tree, "a mapping")
    return parse(tree)  # type: ignore[arg-type]


@dataclass(kw_only=True, slots=True)
class _Scalars:
    """The settings outside every group, for OmegaConf to check their types."""

    per_stage: list[Any] = field(default_factory=list)
    epochs: int = 0
    max_steps: int | None = None
    batch_size: int = 0
    seed: int = 0
    log_every: int = 0
    resume: str = ""
    timeout_s: float = 0
    deterministic: bool = False
    label_smoothing: float = 0
    run_dir: str | None = None


_SINGLE: dict[str, type[Any]] = {
    "schedule": ScheduleConfig,
    "method": MethodConfig,
    "precision": PrecisionConfig,
    "pipeline": PipelineConfig,
    "evaluate": EvaluateConfig,
    "checkpoint": CheckpointConfig,
}
_HEADS: dict[str, type[Any]] = dict.fromkeys(("mlp_sr", "mlp", "cnn", "linear"), HeadConfig)
_STAGE_GROUPS = ("optimizer", "schedule", "head", "precision")


def _choose(group: str, node: Any, selector: str, schemas: Mapping[str, type[Any]]) -> Any:
    """Builds the schema that `node[selector]` names; `target` means a plug-in."""
    _require(isinstance(node, Mapping), group, node, "a group of settings, by name")
    if "_target_" in node or node.get(selector) == "custom":
        _require(group != "optimizer", group, "custom", ", ".join(schemas))
        return _plug_in(group, node)
    choice = node.get(selector)
    _require_name(f"{group}.{selector}", str(choice), tuple(schemas))
    return _build(schemas[str(choice)], node, group)


def _plug_in(group: str, node: Mapping[str, Any]) -> PlugInConfig:
    """A plug-in from `{target, args}` or from Hydra's way, `{_target_, name: value...}`."""
    if "_target_" in node:
        args = {
            key: value for key, value in node.items() if key not in ("_target_", "family", "name")
        }
        node = {"target": node["_target_"], "args": args}
    return _build(PlugInConfig, {**node, "family": "custom", "name": "custom"}, group)


def _refuse_unknown(prefix: str, values: Mapping[str, Any], known: set[str]) -> None:
    for key, value in values.items():
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"There is no such key{f'; did you mean {near[0]}?' if near else ''}"
        path = f"{prefix}.{key}" if prefix else str(key)
        _require(key in known, path, value, f"the keys {', '.join(sorted(known))}", hint)


def _build(schema: type[T], node: Any, prefix: str) -> T:
    """Checks `node` against `schema` (types by OmegaConf, ranges by `__post_init__`)."""
    _require(isinstance(node, Mapping), prefix, node, "a group of settings")
    known = {item.name for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    _refuse_unknown(prefix, node, known)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(node))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        path = ".".join(part for part in (prefix, str(key)) if part)
        raise ConfigError(path, _lookup(node, str(key)), _wanted(schema, str(key))) from None


_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
    "list[Any]": "a list",
    "dict[str, Any]": "a group of settings",
}


def _wanted(schema: type[Any], path: str) -> str:
    """In words what the field of `schema` takes in which `path` lies."""
    name = path.split("[")[0].split(".")[0]
    kind = next((str(item.type) for item in dataclasses.fields(schema) if item.name == name), "")
    plain = kind.removesuffix(" | None")
    return _TYPES.get(plain, f"a value of type {plain}") + (" or null" if plain != kind else "")


def _lookup(node: Any, path: str) -> Any:
    """What stands at `path`, or as far towards it as there is something."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
    return node


def _overlay(group: str, base: Any, own: Any, path: str) -> Any:
    """`base` with the settings of `own`; another name starts from that name's defaults."""
    if own is None:
        return base
    node = {"name": own} if isinstance(own, str) else own
    _require(isinstance(node, Mapping), path, own, "a name or a group of settings")
    same = node.get("name", base.name) == base.name
    merged = {**dataclasses.asdict(base), **node} if same else dict(node)
    if group in ("optimizer", "head"):
        return _choose(group, merged, "name", OPTIMIZERS if group == "optimizer" else _HEADS)
    return _build(_SINGLE[group], merged, group)


def _check_per_stage(config: Config) -> None:
    for j, own in enumerate(config.per_stage):
        where = f"per_stage[{j}]"
        _require(isinstance(own, Mapping), where, own, "a group of settings, {} for none")
        _refuse_unknown(where, own, set(_STAGE_GROUPS))
        try:
            config.stage(j)
        except ConfigError as error:
            raise error if error.key.startswith(where) else error.below(where) from None
