"""Builders from outside the package: found by name, called with what they ask for."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from dglpipe.config import PluginConfig
from dglpipe.errors import ConfigError

_ALLOWED = "package.module:builder or package.module.builder of something importable"


def load_target(target: str, key: str) -> Callable[..., Any]:
    """Imports what `target` names.

    Args:
        target: `package.module:name` (the name may have dots) or `package.module.name`.
        key: the configuration key that errors name, `model.target` for example.

    Raises:
        ConfigError: the text is no such path; the module or the name does not exist; the
            module fails while it is imported (its own error is the cause); what was found
            cannot be called.
    """
    path, names = _split(target, key)
    found: Any = _import(path, target, key)
    for name in names:
        if not hasattr(found, name):
            raise ConfigError(key, target, _ALLOWED, _no_such_name(found, name))
        found = getattr(found, name)
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(key, target, "something that can be called", f"It is of type {kind}")
    return found  # type: ignore[no-any-return]


def build_plug_in(config: PluginConfig, key: str, **offered: object) -> Any:
    """Calls the target of `config` with its arguments.

    Those of `offered` that the target's signature names, and that the user did not give,
    are passed too. A bare `**kwargs` takes none: most pass them on to who knows whom.

    Args:
        config: target and arguments.
        key: the configuration group that errors name, `model` for example.
        offered: what the package knows and a builder may want.

    Raises:
        ConfigError: as `load_target`; the arguments do not fit the signature; the builder
            fails (its own error is the cause).
    """
    builder = load_target(config.target, f"{key}.target")
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # some builtins have none
        return _call(builder, config, key, config.args)
    extra = {name: value for name, value in offered.items() if name in signature.parameters}
    arguments = {**extra, **config.args}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        allowed = f"arguments of {config.target}{signature}"
        raise ConfigError(f"{key}.args", config.args, allowed, str(error)) from None
    return _call(builder, config, key, arguments)


def _call(builder: Callable[..., Any], config: PluginConfig, key: str, arguments: Any) -> Any:
    try:
        return builder(**arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's builder does
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        hint = f"The builder fails with them: {_describe(error)} ({where})"
        allowed = f"arguments with which {config.target} works"
        raise ConfigError(f"{key}.args", arguments, allowed, hint) from error


def _split(target: str, key: str) -> tuple[str, list[str]]:
    """The module's path, and the names to look up in it one after the other."""
    path, mark, name = target.partition(":")
    if not mark:
        path, _, name = target.rpartition(".")
    names = name.split(".")
    if not all(part.isidentifier() for part in [*path.split("."), *names]):
        raise ConfigError(key, target, _ALLOWED)
    return path, names


def _import(path: str, target: str, key: str) -> ModuleType:
    try:
        # A module that makes tensors must not shift the draws of the network being built, nor
        # make them where that is drawn on paper: it is imported once, now or by somebody else.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        own = path == missing or path.startswith(f"{missing}.")
        hint = f"There is no module {missing!r}" if own else _broken(path, error)
        if own:
            hint += "; is its folder on PYTHONPATH, its package installed?"
        raise ConfigError(key, target, _ALLOWED, hint) from error
    except Exception as error:  # whatever the user's module does while it is imported
        raise ConfigError(key, target, "a module that can be imported", _broken(path, error)) from (
            error
        )


def _broken(path: str, error: Exception) -> str:
    return f"Module {path!r} exists and fails while it is imported: {_describe(error)}"


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it needs the module {error.name!r}, which is not installed"
    return f"{type(error).__name__}: {error}"


def _no_such_name(owner: object, name: str) -> str:
    where = getattr(owner, "__name__", repr(owner))
    near = difflib.get_close_matches(name, dir(owner), n=3)
    return f"{where!r} has no {name!r}" + (f"; near it: {', '.join(near)}" if near else "")
