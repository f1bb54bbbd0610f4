"""Settings of the local objectives. `dglpipe.methods.local` implements the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dglpipe.config.checks import require, require_name, require_number, require_positive


@dataclass(kw_only=True, slots=True)
class LocalConfig:
    """The local objective of decoupled greedy learning: the loss of the head (`method.loss`)."""

    name: str = "task"
    weight: float = 1.0
    """Factor of the local loss of a stage; 0 to 1000. With `per_stage` and SGD, a stage learns more
    slowly than others."""
    label_smoothing: float | None = None
    """Label smoothing of the loss of the stage; 0 to 0.99; null: `label_smoothing`."""
    head_warmup: int = 0
    """Steps at the start in which only the auxiliary modules of a stage learn; from 0. The last
    stage, which has none, learns in every step."""

    def __post_init__(self) -> None:
        require_number("local.weight", self.weight, 0, 1000)
        if self.label_smoothing is not None:
            require_number("local.label_smoothing", self.label_smoothing, 0, 0.99)
        require_number("local.head_warmup", self.head_warmup, 0)


@dataclass(kw_only=True, slots=True)
class InfoproConfig(LocalConfig):
    """InfoPro: the features of a stage also have to reconstruct the image."""

    name: str = "infopro"
    reconstruction: list[float] = field(default_factory=lambda: [5.0, 0.0])
    """Weight of the reconstruction loss in the first and in the last stage with a local loss; 0 or
    more. Stages in between have weights between, linearly."""
    task: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """Weight of the loss of the head, likewise."""
    decoder_size: int | None = None
    """Height and width in pixels at which images are reconstructed; from 1; null: of the image."""
    channels: int = 12
    """Channels between the two convolutions of the decoder; from 1."""

    def __post_init__(self) -> None:
        LocalConfig.__post_init__(self)
        _require_ends("local.reconstruction", self.reconstruction)
        _require_ends("local.task", self.task)
        if self.decoder_size is not None:
            require_number("local.decoder_size", self.decoder_size, 1)
        require_number("local.channels", self.channels, 1)


@dataclass(kw_only=True, slots=True)
class AuglocalConfig(LocalConfig):
    """AugLocal: a head has the form of layers that follow in the network."""

    name: str = "auglocal"
    depth: int = 2
    """Layers of the head of stage 0; at most the segments above stage 0. Later stages have fewer
    layers: down to about half as many."""

    def __post_init__(self) -> None:
        LocalConfig.__post_init__(self)
        require_number("local.depth", self.depth, 1, 1000)


@dataclass(kw_only=True, slots=True)
class PredsimConfig(LocalConfig):
    """PredSim: features of images of one class have to be similar."""

    name: str = "predsim"
    similarity: float = 0.99
    """Weight of the similarity matching loss; 0 to 1. The loss of the head has the rest."""

    def __post_init__(self) -> None:
        LocalConfig.__post_init__(self)
        require_number("local.similarity", self.similarity, 0, 1)


@dataclass(kw_only=True, slots=True)
class TrglConfig(LocalConfig):
    """TRGL: residual branches have to change their input little."""

    name: str = "trgl"
    tau: float = 1.0
    """Step size: the mean squares of the residual branches have the weight 1 / (2 tau). Half of it
    in the first half of the stages; more than 0, to 1e9."""

    def __post_init__(self) -> None:
        LocalConfig.__post_init__(self)
        require_positive("local.tau", self.tau)


@dataclass(kw_only=True, slots=True)
class ManConfig(LocalConfig):
    """MAN: the head copies the first segment of the next stage and follows its weights."""

    name: str = "man"
    every: int = 1
    """Steps from one message with these weights to the next; from 1."""
    lag: int = 1
    """Steps from the step after which the weights are sent to the step after which they are used;
    0 to 1000. With 0, a stage waits for the next one."""
    momentum: float = 0.995
    """Share of the copy that stays in a step; 0 to 1."""
    scale: str = "learned"
    """`learned` (MAN++): the stage learns the share of each copy; `fixed` (MAN): both count 1."""

    def __post_init__(self) -> None:
        LocalConfig.__post_init__(self)
        require_number("local.every", self.every, 1)
        require_number("local.lag", self.lag, 0, 1000)
        require_number("local.momentum", self.momentum, 0, 1)
        require_name("local.scale", self.scale, ("learned", "fixed"))


def _require_ends(key: str, values: Sequence[float]) -> None:
    allowed = "two numbers, for the first and the last stage with a local loss"
    require(len(values) == 2, key, values, allowed)
    for value in values:
        require_number(key, value, 0, 1e9)


LOCALS: dict[str, type[Any]] = {
    "task": LocalConfig,
    "infopro": InfoproConfig,
    "auglocal": AuglocalConfig,
    "predsim": PredsimConfig,
    "trgl": TrglConfig,
    "man": ManConfig,
}
"""Local objectives: name -> schema."""
