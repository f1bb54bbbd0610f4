"""Checks before the call that the target of a plug-in can build an object of the announced kind."""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dglpipe.errors import ConfigError

_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Kind:
    """The objects that the builders of a setting give: networks, losses, data sets or methods."""

    name: str
    """In words, `torch.nn.Module` for example."""
    base: type
    """The class of the objects. Installed packages contain much else, so a builder of an installed
    package has to show this class: as the builder itself, or as its return annotation."""
    own: type | None = None
    """A wider class that is enough for modules of the user; None: `base`."""

    def allows(self, given: type, installed: bool) -> bool:
        """Whether a builder that gives a `given` is a builder of this kind."""
        # No builtin type, not even a list or a string, is of any kind.
        wanted = self.base if installed or self.own is None else self.own
        return given.__module__ != "builtins" and issubclass(given, wanted)


def refuse_standard_library(module: str, target: str, key: str, kind: str) -> None:
    """Raises ConfigError for a module that belongs to Python. Imports nothing."""
    if _top(module) in sys.stdlib_module_names:
        hint = f"{module} belongs to the standard library of Python, which has no plug-ins"
        raise ConfigError(key, target, f"a class or function that gives a {kind}", hint)


def require_builder(found: object, target: str, key: str, kind: Kind) -> None:
    """Checks that `found` is a builder of `kind`, without calling it.

    - It is a class or a function in Python: `os.system`, for example, is a function in C.
    - It is not defined in the standard library.
    - If it is defined in an installed package, the target names this package. A class is a subclass
      of `kind.base`, and the return annotation of a function names such a class. Functions of torch
      are refused, because some of them execute their arguments.
    - In modules of the user, the return annotation may be missing.

    Args:
        found: object that `target` names.
        key: configuration key that errors name.

    Raises:
        ConfigError: one of these rules is broken.
    """
    allowed = f"a class or function that gives a {kind.name}"
    builder = _unwrapped(found)
    if not isinstance(builder, type | types.FunctionType):
        hint = f"{target} is of type {type(builder).__name__}"
        raise ConfigError(key, target, allowed, hint)
    home, name = builder.__module__, builder.__qualname__
    refuse_standard_library(home, target, key, kind.name)
    installed = _is_installed(home)
    if installed and _top(home) != _top(target):
        hint = f"It is defined in {home}: name it there, {key}={home}:{name}"
        raise ConfigError(key, target, allowed, hint)
    if not (refusal := _refusal(builder, kind, installed)):
        return
    raise ConfigError(key, target, allowed, f"{home}.{name} {refusal}")


def _refusal(builder: Any, kind: Kind, installed: bool) -> str:
    """Why the class or function `builder` is no builder of `kind`; "": it may be one."""
    if isinstance(builder, type):
        return "" if kind.allows(builder, installed) else "is a class of other objects"
    if installed and _top(builder.__module__) == "torch":
        return "is a function of torch, and only classes of torch are builders"
    given = _return_types(builder)
    if given is None:
        own = "call it in a function of your own"
        return f"does not say what it returns; annotate it, or {own}" if installed else ""
    if any(kind.allows(one, installed) for one in given):
        return ""
    if not installed and any(_is_wider(one, kind.base) for one in given):
        return ""
    return f"returns {' or '.join(one.__name__ for one in given)}"


def _is_wider(given: type, base: type) -> bool:
    """Whether a builder annotated with `given` may return a `base`: with `object` for example."""
    try:
        return issubclass(base, given)
    except TypeError:  # a protocol
        return True


def _unwrapped(found: object) -> object:
    """The class or function behind partial functions, methods and the wrappers of functools."""
    while True:
        if isinstance(found, functools.partial):
            found = found.func
        elif isinstance(found, types.MethodType):
            found = found.__func__
        elif "__wrapped__" in getattr(found, "__dict__", {}) and not isinstance(found, type):
            found = found.__wrapped__  # type: ignore[attr-defined]
        else:
            return found


def _return_types(builder: Callable[..., Any]) -> list[type] | None:
    """The classes in the return annotation; None if there is none or if it names no class."""
    annotations = getattr(builder, "__annotations__", {})
    if "return" not in annotations:
        return None
    only = types.SimpleNamespace(__annotations__={"return": annotations["return"]})
    try:
        hint = typing.get_type_hints(only, getattr(builder, "__globals__", {}))["return"]
    except Exception:  # the names of an annotation may exist for type checkers only
        return None
    return _classes(hint)


def _classes(hint: Any) -> list[type] | None:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_classes(part) for part in typing.get_args(hint)]
        return None if None in parts else [one for part in parts if part for one in part]
    found = origin or hint
    return [found] if isinstance(found, type) and found is not Any else None


def _is_installed(module: str) -> bool:
    """Whether the imported `module` is of an installed package, not of the user's own files."""
    if _top(module) in ("dglpipe", "torch", "torchvision"):  # maybe in development mode
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not _PACKAGE_FOLDERS.isdisjoint(Path(file).parts)


def _top(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]
