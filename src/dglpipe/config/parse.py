"""Converts a configuration from and to plain dictionaries and YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from dglpipe.config.build import build, choose, literal, refuse_unknown, unescaped
from dglpipe.config.checks import require, require_plain
from dglpipe.config.schema import CHOICES, SINGLE, STAGE_GROUPS, Config
from dglpipe.errors import ConfigError


def parse(tree: Mapping[str, Any]) -> Config:
    """Converts a composed configuration to typed objects.

    Args:
        tree: plain dictionary with every key of `Config`; it is not modified.

    Raises:
        ConfigError: an unknown or missing key, a value of the wrong type or out of range.
    """
    known = [item.name for item in dataclasses.fields(Config)]
    require_plain("", tree)
    refuse_unknown("", tree, set(known))
    for key in known:
        if key not in tree:
            raise ConfigError.required(key)
    groups = {group: choose(group, tree[group], schemas) for group, schemas in CHOICES.items()}
    groups |= {group: build(schema, tree[group], group) for group, schema in SINGLE.items()}
    rest = build(_Scalars, {key: tree[key] for key in known if key not in groups}, "")
    scalars = {item.name: getattr(rest, item.name) for item in dataclasses.fields(_Scalars)}
    config = Config(**groups, **scalars)
    _check_per_stage(config)
    return config


def to_tree(config: Config) -> dict[str, Any]:
    """Converts `config` to a plain dictionary; `parse` restores an equal `Config`."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """Converts `config` to the text of `config.yaml`; `from_yaml` restores an equal `Config`."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(to_tree(config))))


def from_yaml(text: str) -> Config:
    """Reads a configuration that `to_yaml` wrote.

    Raises:
        ConfigError: malformed YAML, and all errors of `parse`.
    """
    try:
        tree = unescaped(OmegaConf.to_container(OmegaConf.create(text)))
    except Exception as error:  # errors of OmegaConf and of its YAML library
        reason = " ".join(str(error).split())
        raise ConfigError("config.yaml", "malformed YAML", "YAML", reason) from error
    require(isinstance(tree, dict), "config.yaml", tree, "a mapping {key: value}")
    return parse(tree)


@dataclass(kw_only=True, slots=True)
class _Scalars:
    """The fields of `Config` that are not groups, in types that OmegaConf can check."""

    per_stage: list[Any] = field(default_factory=list)
    epochs: int = 0
    max_steps: int | None = None
    batch_size: int = 0
    seed: int = 0
    log_every: int = 0
    resume: str = ""
    on_nonfinite: str = ""
    timeout_s: float = 0
    on_failure: str = ""
    max_restarts: int = 0
    timeline: bool = False
    deterministic: bool = False
    label_smoothing: float = 0
    run_dir: str | None = None


def _check_per_stage(config: Config) -> None:
    for j, own in enumerate(config.per_stage):
        where = f"per_stage[{j}]"
        allowed = "a group of settings {key: value}, {} for none"
        require(isinstance(own, Mapping), where, own, allowed)
        refuse_unknown(where, own, set(STAGE_GROUPS))
        try:
            config.stage(j)
        except ConfigError as error:
            raise error if error.key.startswith(where) else error.below(where) from None
