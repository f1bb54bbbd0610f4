"""The settings of a configuration that name Python code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dglpipe.config.schema import Config


def named_targets(config: Config) -> dict[str, str]:
    """All import paths in `config`: key (`per_stage[0].head.target` for example) -> target.

    Arguments of plug-ins are not included: they are data, and dglpipe calls nothing that they name.

    Raises:
        ConfigError: an invalid setting in `per_stage`.
    """
    found = dict(_targets(dataclasses.asdict(config), ""))
    for j in range(len(config.per_stage)):
        for key, target in _targets(dataclasses.asdict(config.stage(j)), ""):
            if found.get(key) != target:
                found[f"per_stage[{j}].{key}"] = target
    return found


def _targets(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if name == "target":
            yield f"{prefix}{name}", str(value)
        elif isinstance(value, Mapping) and name != "args":
            yield from _targets(value, f"{prefix}{name}.")
