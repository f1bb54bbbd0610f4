"""The configuration groups of the package: their choices, and which keys belong to which."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

CONFIG_MODULE = "dglpipe.conf"


def groups() -> list[str]:
    """Names of all groups."""
    folders = [item for item in files(CONFIG_MODULE).iterdir() if item.is_dir()]
    return sorted(folder.name for folder in folders if folder.name[0] not in "_.")


def choices(group: str) -> list[str]:
    """Names of the choices of `group`; empty if there is no such group."""
    folder = files(CONFIG_MODULE).joinpath(group)
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def suggestion(key: str) -> str:
    """What may have been meant by `key`, which the chosen configuration does not have."""
    homes = _homes()
    if homes.get(key):
        return f"it belongs to {' and '.join(homes[key])}"
    group, _, name = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in homes if _group(other) == group}
    near = [siblings[one] for one in difflib.get_close_matches(name, siblings, n=1)]
    if not siblings:
        near = difflib.get_close_matches(key, homes, n=1)
    if near:
        return f"did you mean {near[0]}?"
    tops = {other.partition(".")[0] for other in homes}
    return f"allowed: {', '.join(sorted(siblings.values() or tops))}"


def _homes() -> dict[str, list[str]]:
    """Every key, with the choices that it belongs to; without any if it is always there."""
    homes: dict[str, list[str]] = {key: [] for key in _keys(_load("config.yaml"))}
    homes |= {group: [] for group in groups()}
    for group in groups():
        for choice in choices(group) if group != "experiment" else ():
            for key in _keys(_load(f"{group}/{choice}.yaml"), group):
                homes.setdefault(key, []).append(f"{group}={choice}")
    return homes


def _load(path: str) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(
        OmegaConf.create(files(CONFIG_MODULE).joinpath(path).read_text())
    )
    tree.pop("defaults", None)
    return dict(tree)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in tree.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        keys += [key, *_keys(value, key)] if isinstance(value, Mapping) else [key]
    return keys


def _group(key: str) -> str:
    return key.rpartition(".")[0]
