"""From plain dictionaries to the objects of the schema."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dglpipe.config.checks import require, require_name
from dglpipe.config.model import CustomModelConfig
from dglpipe.config.plugin import PluginConfig
from dglpipe.errors import ConfigError

T = TypeVar("T")


def choose(group: str, node: Any, selector: str, schemas: Mapping[str, type[Any]]) -> Any:
    """Builds the schema that `node[selector]` names; `target` means a plug-in."""
    require(isinstance(node, Mapping), group, node, "a group of settings, by name")
    if group == "method" and "_target_" in node:
        node = hydra_target(node, ("loss",))
    elif "_target_" in node or (node.get(selector) == "custom" and group != "method"):
        fixed = group in ("optimizer", "schedule")
        require(not fixed, group, "custom", ", ".join(schemas))
        return plug_in(group, node)
    choice = node.get(selector)
    require_name(f"{group}.{selector}", str(choice), tuple(schemas))
    return build(schemas[str(choice)], node, group)


def plug_in(group: str, node: Mapping[str, Any]) -> PluginConfig:
    """A plug-in from `{target, args}` or from Hydra's way, `{_target_, name: value...}`."""
    if "_target_" in node:
        node = hydra_target(node, ("weights",) if group == "model" else ())
    target = node.get("target")
    allowed = "package.module:builder of something importable"
    require(bool(target), f"{group}.target", target, allowed)
    named = {"family": "custom", "name": "custom", "args": node.get("args") or {}}
    schema = CustomModelConfig if group == "model" else PluginConfig
    return build(schema, {**node, **named}, group)


def hydra_target(node: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    """`{_target_, name: value...}` of Hydra as `{name: custom, target, args}`.

    Args:
        own: keys of the group that are not arguments of the target.
    """
    reserved = ("_target_", "family", "name", *own)
    args = {key: value for key, value in node.items() if key not in reserved}
    kept = {key: node[key] for key in own if key in node}
    return {"name": "custom", "target": node["_target_"], "args": args, **kept}


def refuse_unknown(prefix: str, values: Mapping[str, Any], known: set[str]) -> None:
    for key, value in values.items():
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"There is no such key{f'; did you mean {near[0]}?' if near else ''}"
        path = f"{prefix}.{key}" if prefix else str(key)
        require(key in known, path, value, f"the keys {', '.join(sorted(known))}", hint)


def build(schema: type[T], node: Any, prefix: str) -> T:
    """Checks `node` against `schema` (types by OmegaConf, ranges by `__post_init__`)."""
    require(isinstance(node, Mapping), prefix, node, "a group of settings")
    known = {item.name for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    refuse_unknown(prefix, node, known)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(node))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        path = ".".join(part for part in (prefix, str(key)) if part)
        raise ConfigError(path, lookup(node, str(key)), wanted(schema, str(key))) from None


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


def wanted(schema: type[Any], path: str) -> str:
    """In words what the field of `schema` takes in which `path` lies."""
    name = path.split("[")[0].split(".")[0]
    kind = next((str(item.type) for item in dataclasses.fields(schema) if item.name == name), "")
    plain = kind.removesuffix(" | None")
    return _TYPES.get(plain, f"a value of type {plain}") + (" or null" if plain != kind else "")


def lookup(node: Any, path: str) -> Any:
    """What stands at `path`, or as far towards it as there is something."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
    return node
