"""The configuration groups: their choices, and the keys of each choice."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

CONFIG_MODULE = "dglpipe.conf"


def groups() -> list[str]:
    """Names of all groups."""
    folders = [item for item in files(CONFIG_MODULE).iterdir() if item.is_dir()]
    return sorted(folder.name for folder in folders if folder.name[0] not in "_.")


def choices(group: str) -> list[str]:
    """Names of the choices of `group`; empty if the group does not exist."""
    folder = files(CONFIG_MODULE).joinpath(group)
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def config_text(path: str) -> str:
    """The text of a configuration file, `model/cnn6.yaml` for example."""
    return files(CONFIG_MODULE).joinpath(path).read_text()


def default_choices() -> dict[str, str]:
    """The choice of each group in the default configuration."""
    defaults = config_file("config.yaml")["defaults"]
    pairs = [pair for entry in defaults if isinstance(entry, Mapping) for pair in entry.items()]
    return {group: choice for group, choice in pairs if choice is not None}


def suggestion(key: str) -> str:
    """The hint for the unknown `key`: the choices that have the key, or a similar key."""
    known = _known_keys()
    if known.get(key):
        return f"it belongs to {' and '.join(known[key])}"
    group, _, name = key.rpartition(".")
    siblings = {
        other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == group
    }
    near = [siblings[match] for match in difflib.get_close_matches(name, siblings, n=1)]
    if not siblings:
        near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    tops = {other.partition(".")[0] for other in known}
    return f"allowed: {', '.join(sorted(siblings.values() or tops))}"


def _known_keys() -> dict[str, list[str]]:
    """Every key with the choices that define the key; an empty list for keys of all runs."""
    known: dict[str, list[str]] = {key: [] for key in _keys(config_file("config.yaml"))}
    known |= {group: [] for group in groups()}
    for group in groups():
        for choice in choices(group) if group != "experiment" else ():
            for key in _keys(config_file(f"{group}/{choice}.yaml"), group):
                known.setdefault(key, []).append(f"{group}={choice}")
    return known


def config_file(path: str) -> dict[str, Any]:
    """The content of a configuration file, `model/cnn6.yaml` for example."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(OmegaConf.create(config_text(path)))
    return dict(tree)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of `tree` and of the mappings in `tree`."""
    keys = []
    for name, value in tree.items():
        if name == "defaults":  # Hydra's defaults list
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        keys += [key, *_keys(value, key)] if isinstance(value, Mapping) else [key]
    return keys
