"""Reading and writing a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from dglpipe.config.build import build, choose, refuse_unknown
from dglpipe.config.checks import require
from dglpipe.config.data import DATA_SETS
from dglpipe.config.method import METHODS
from dglpipe.config.model import MODEL_FAMILIES
from dglpipe.config.optim import OPTIMIZERS, SCHEDULES
from dglpipe.config.schema import HEADS, SINGLE, STAGE_GROUPS, Config
from dglpipe.errors import ConfigError


def parse(tree: Mapping[str, Any]) -> Config:
    """Turns a composed configuration into typed objects.

    Raises:
        ConfigError: a key that does not exist, a value of the wrong type or out of range.
    """
    values = dict(tree)
    known = {item.name for item in dataclasses.fields(Config)}
    refuse_unknown("", values, known)
    missing = sorted(known - values.keys())
    require(not missing, missing[0] if missing else "", "nothing", "a value")
    groups = {
        "model": choose("model", values.pop("model"), "family", MODEL_FAMILIES),
        "head": choose("head", values.pop("head"), "name", HEADS),
        "data": choose("data", values.pop("data"), "name", DATA_SETS),
        "optimizer": choose("optimizer", values.pop("optimizer"), "name", OPTIMIZERS),
        "schedule": choose("schedule", values.pop("schedule"), "name", SCHEDULES),
        "method": choose("method", values.pop("method"), "name", METHODS),
    }
    for group, schema in SINGLE.items():
        groups[group] = build(schema, values.pop(group), group)
    rest = build(_Scalars, values, "")
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
    """Reads what `to_yaml` wrote.

    Raises:
        ConfigError: it is no YAML, or no configuration.
    """
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # those of the YAML library, which is OmegaConf's
        reason = " ".join(str(error).split())
        raise ConfigError("config.yaml", "a text that is torn", "YAML", reason) from error
    require(isinstance(tree, dict), "config.yaml", tree, "a mapping")
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
    timeline: bool = False
    deterministic: bool = False
    label_smoothing: float = 0
    run_dir: str | None = None


def _check_per_stage(config: Config) -> None:
    for j, own in enumerate(config.per_stage):
        where = f"per_stage[{j}]"
        require(isinstance(own, Mapping), where, own, "a group of settings, {} for none")
        refuse_unknown(where, own, set(STAGE_GROUPS))
        try:
            config.stage(j)
        except ConfigError as error:
            raise error if error.key.startswith(where) else error.below(where) from None
