"""Imports and calls plug-ins: builders from outside the package."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dglpipe.config.builder_kind import Kind, refuse_standard_library, require_builder
from dglpipe.config.plugin import PluginConfig
from dglpipe.errors import ConfigError

_ALLOWED = "package.module:builder or package.module.builder that can be imported"


def load_target(target: str, key: str, kind: Kind) -> Callable[..., Any]:
    """Imports the builder that `target` names.

    Args:
        target: `package.module:name` or `package.module.name`. After a colon, `name` may be an
            attribute of a class, with dots.
        key: configuration key that errors name, `model.target` for example.
        kind: what the builder has to give.

    Raises:
        ConfigError: `target` is not an import path; the module or the name does not exist; the
            import of the module fails (its exception is the cause); the object is no builder of
            `kind` (`require_builder`).
    """
    path, names = split_target(target, key)
    refuse_standard_library(path, target, key, kind.name)
    found: Any = import_plug_in(path, target, key)
    for name in names:
        if not hasattr(found, name):
            raise ConfigError(key, target, _ALLOWED, _no_such_name(found, name))
        found = getattr(found, name)
        if isinstance(found, ModuleType):
            hint = f"{name!r} is the module {found.__name__}: write its full name before the colon"
            raise ConfigError(key, target, _ALLOWED, hint)
    require_builder(found, target, key, kind)
    return found  # type: ignore[no-any-return]


def build_plug_in(config: PluginConfig, key: str, kind: Kind, /, **offered: object) -> Any:
    """Calls the builder of a plug-in with the arguments of the user.

    The builder also receives the arguments in `offered` that its signature names and that the user
    did not give. A parameter `**kwargs` receives no offered arguments: most builders pass
    `**kwargs` on to functions that reject unknown names.

    Args:
        config: import path and arguments of the builder.
        key: configuration group that errors name, `model` for example.
        kind: what the builder has to give.
        offered: arguments that the package can fill in.

    Returns:
        The return value of the builder.

    Raises:
        ConfigError: as `load_target`; the arguments do not match the signature; the builder raises
            an exception (which is the cause), or returns an object of another kind.
    """
    builder = load_target(config.target, f"{key}.target", kind)
    built = _call(builder, config, key, _arguments(builder, config, key, offered))
    if not isinstance(built, kind.own or kind.base):
        hint = f"It returned a {type(built).__name__}"
        raise ConfigError(f"{key}.target", config.target, f"a builder of a {kind.name}", hint)
    return built


def _arguments(
    builder: Callable[..., Any], config: PluginConfig, key: str, offered: dict[str, object]
) -> dict[str, Any]:
    """The arguments of the user, and the arguments in `offered` that the builder names."""
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # some subclasses of builtins have no signature
        return config.args
    extra = {name: value for name, value in offered.items() if name in signature.parameters}
    arguments = {**extra, **config.args}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        allowed = f"arguments of {config.target}{signature}"
        raise ConfigError(f"{key}.args", config.args, allowed, str(error)) from None
    return arguments


def _call(builder: Callable[..., Any], config: PluginConfig, key: str, arguments: Any) -> Any:
    try:
        return builder(**arguments)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # code of the user may raise any exception
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        hint = f"{config.target} raises {_describe(error)} ({where})"
        allowed = f"arguments that {config.target} accepts"
        raise ConfigError(f"{key}.args", arguments, allowed, hint) from error


def split_target(target: str, key: str) -> tuple[str, list[str]]:
    """Splits `target` into the path of the module and the attributes to look up in turn."""
    path, mark, name = target.partition(":")
    if not mark:
        path, _, name = target.rpartition(".")
    names = name.split(".")
    if not all(part.isidentifier() for part in [*path.split("."), *names]):
        raise ConfigError(key, target, _ALLOWED)
    if "__main__" in path.split(".")[1:]:
        raise ConfigError(key, target, _ALLOWED, f"{path} is a program: its import runs it")
    return path, names


def import_plug_in(path: str, target: str, key: str) -> ModuleType:
    """Imports the module `path` of `target`.

    Raises:
        ConfigError: there is no such module, or its import fails.
    """
    import torch  # not at module level: `import dglpipe.config` works without torch

    try:
        # A module may create tensors while it is imported. The import must not advance the random
        # generator that initialises the network, nor create tensors on the meta device.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(f"{missing}."):
            raise ConfigError(key, target, _ALLOWED, _import_failed(path, error)) from error
        hint = f"There is no module {missing!r}; add its folder to PYTHONPATH, or install it"
        raise ConfigError(key, target, _ALLOWED, hint) from error
    except (Exception, SystemExit) as error:  # code of the user may raise any exception
        hint = _import_failed(path, error)
        raise ConfigError(key, target, "a module that can be imported", hint) from error


def _import_failed(path: str, error: BaseException) -> str:
    return f"Module {path!r} exists, but its import fails: {_describe(error)}"


def _describe(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"module {error.name!r} is not installed"
    return f"{type(error).__name__}: {error}"


def _no_such_name(owner: object, name: str) -> str:
    where = getattr(owner, "__name__", repr(owner))
    near = difflib.get_close_matches(name, dir(owner), n=3)
    return f"{where!r} has no {name!r}" + (f"; similar names: {', '.join(near)}" if near else "")
