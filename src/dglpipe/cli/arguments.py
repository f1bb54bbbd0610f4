"""Parsing of the command-line arguments of `train` and `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dglpipe.errors import UserError


@dataclass(slots=True)
class Arguments:
    """Parsed arguments of `train`.

    `run_dir` is not an override: Hydra's grammar rejects paths with `=`, `(` or `@`.
    """

    overrides: list[str] = field(default_factory=list)
    """`key=value` and `group=name`, as Hydra parses them."""
    flags: list[str] = field(default_factory=list)
    """Other flags of Hydra, with their values."""
    run_dir: str | None = None
    config_dir: str | None = None
    config_name: str = "config"
    sweep: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Sorts arguments into overrides, the flags of `Arguments` and Hydra's other flags.

    Raises:
        UserError: `run_dir` is given twice.
    """
    result, rest = Arguments(), list(arguments)
    given: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if word in ("-m", "--multirun"):
            result.sweep = True
        elif name in ("--config-dir", "-cd", "--config-name", "-cn"):
            key = "config_dir" if name in ("--config-dir", "-cd") else "config_name"
            setattr(result, key, value or (rest.pop(0) if rest else ""))
        elif name.lstrip("+") == "run_dir":
            if "run_dir" in given:
                raise UserError(f"run_dir: got {word!r} after {given['run_dir']!r}; allowed: one")
            given["run_dir"] = word
            path = value.strip("'\"")
            result.run_dir = None if path == "null" else path or None
        elif word.startswith("-"):
            result.flags.append(word)
            if word in ("--cfg", "-c", "--package", "-p", "--info") and rest:
                result.flags.append(rest.pop(0))
        else:
            result.overrides.append(word)
    return result
