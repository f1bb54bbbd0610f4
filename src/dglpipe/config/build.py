"""Builds objects of the schema from plain dictionaries."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dglpipe.config.checks import require, require_name
from dglpipe.config.head import CustomHeadConfig
from dglpipe.config.model import CustomModelConfig
from dglpipe.config.plugin import PluginConfig
from dglpipe.errors import ConfigError

T = TypeVar("T")

_PLUGIN_GROUPS = ("model", "head", "data")
_OWN_KEYS = {"model": ("weights",), "method": ("loss", "reset_optimizer"), "head": ("reads",)}
"""Group -> keys of a plug-in that are not arguments of its builder."""
_PLUGIN_SCHEMAS: dict[str, type[PluginConfig]] = {
    "model": CustomModelConfig,
    "head": CustomHeadConfig,
}
"""Group -> schema of its plug-ins, if they have keys of their own."""


def choose(group: str, node: Any, schemas: Mapping[str, type[Any]]) -> Any:
    """Builds the settings of a group that has one schema per choice.

    Args:
        group: name of the group.
        node: settings of the group. `family` (group `model`) or `name` (other groups) selects
            the schema; `custom` or a key `_target_` selects a plug-in.
        schemas: choice -> schema. Where it has `custom`, a plug-in gets that schema.

    Raises:
        ConfigError: an unknown choice, and all errors of `build`.
    """
    require(isinstance(node, Mapping), group, node, "a group of settings {key: value}")
    if "_target_" in node:
        node = _from_hydra(group, node)
    selector = _selector(group)
    choice = str(node.get(selector))
    if choice == "custom" and group in _PLUGIN_GROUPS:
        return plug_in(group, node)
    require_name(f"{group}.{selector}", choice, tuple(schemas))
    return build(schemas[choice], node, group)


def _selector(group: str) -> str:
    return "family" if group == "model" else "name"


def plug_in(group: str, node: Mapping[str, Any]) -> PluginConfig:
    """Builds the configuration of a plug-in.

    Args:
        group: key that errors name.
        node: `{target, args}`, or the form of Hydra, `{_target_, name: value, ...}`.

    Raises:
        ConfigError: `target` is missing, and all errors of `build`.
    """
    if "_target_" in node:
        node = _from_hydra(group, node)
    target = node.get("target")
    require(bool(target), f"{group}.target", target, "package.module:builder")
    args = {} if node.get("args") is None else node["args"]
    fixed = {"family": "custom", "name": "custom", "args": args}
    return build(_PLUGIN_SCHEMAS.get(group, PluginConfig), {**node, **fixed}, group)


def _from_hydra(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Converts `{_target_, name: value, ...}` to `{name: custom, target, args}`."""
    own = {key: node[key] for key in _OWN_KEYS.get(group, ()) if key in node}
    reserved = ("_target_", "family", "name", *own)
    args = {key: value for key, value in node.items() if key not in reserved}
    return {_selector(group): "custom", "target": node["_target_"], "args": args, **own}


def refuse_unknown(prefix: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Raises ConfigError for the first key of `values` that is not in `known`."""
    for key, value in values.items():
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"There is no such key{f'; did you mean {near[0]}?' if near else ''}"
        path = f"{prefix}.{key}" if prefix else str(key)
        require(key in known, path, value, f"the keys {', '.join(sorted(known))}", hint)


def build(schema: type[T], node: Any, prefix: str) -> T:
    """Builds a `schema` from the settings `node`.

    OmegaConf checks the types; `__post_init__` of the schema checks the ranges.

    Args:
        schema: dataclass to build.
        node: key -> value; omitted keys get the default of the schema.
        prefix: key of `node`, for errors; "": the top level.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a value out of range.
    """
    require(isinstance(node, Mapping), prefix, node, "a group of settings {key: value}")
    known = {item.name for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    refuse_unknown(prefix, node, known)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), literal(dict(node)))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        key = str(getattr(error, "full_key", None) or _culprit(schema, node))
        path = ".".join(part for part in (prefix, key) if part)
        raise ConfigError(path, lookup(node, key), describe(schema, key)) from None


def _culprit(schema: type[Any], node: Mapping[str, Any]) -> str:
    """The key of `node` that does not fit, for errors of OmegaConf that do not name it."""
    for key, value in node.items():
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {key: literal(value)})
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
            return key
    return ""


_MARK, _ESCAPED = re.compile(r"(\\*)\$\{"), re.compile(r"(\\+)\$\{")


def literal(value: Any) -> Any:
    """Escapes `${` in all texts of `value`: OmegaConf reads `${` as an interpolation."""
    return _map_texts(value, lambda text: _MARK.sub(r"\1\1\\${", text))


def unescaped(value: Any) -> Any:
    """The inverse of `literal`. Texts that are not escaped stay as they are."""
    return _map_texts(
        value, lambda text: _ESCAPED.sub(lambda at: at[1][: len(at[1]) // 2] + "${", text)
    )


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value


_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
    "list[Any]": "a list",
    "dict[str, Any]": "a group of settings {key: value}",
}


def describe(schema: type[Any], path: str) -> str:
    """The type of the field of `schema` that contains `path`, in words."""
    name = path.split("[")[0].split(".")[0]
    kind = next((str(item.type) for item in dataclasses.fields(schema) if item.name == name), "")
    plain = kind.removesuffix(" | None")
    return _TYPES.get(plain, f"a value of type {plain}") + (" or null" if plain != kind else "")


def lookup(node: Any, path: str) -> Any:
    """The value of `node` at `path`, or at the longest prefix of `path` that exists."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
    return node
