"""From command-line arguments to a checked configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dglpipe.cli.config_groups import CONFIG_MODULE, choices, suggestion
from dglpipe.config import Config, parse
from dglpipe.errors import ConfigError, UserError


@dataclass(slots=True)
class Arguments:
    """The arguments of `train`, taken apart.

    `run_dir` is kept out of Hydra's grammar, in which a path with = or ( or @ is an error.
    """

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    run_dir: str | None = None
    config_dir: str | None = None
    config_name: str = "config"
    sweep: bool = False


def take_apart(arguments: Sequence[str]) -> Arguments:
    """Sorts arguments into overrides, the flags that we know, and Hydra's other flags."""
    result, rest = Arguments(), list(arguments)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if word in ("-m", "--multirun"):
            result.sweep = True
        elif name in ("--config-dir", "-cd", "--config-name", "-cn"):
            key = "config_dir" if name in ("--config-dir", "-cd") else "config_name"
            setattr(result, key, value or (rest.pop(0) if rest else ""))
        elif name == "run_dir":
            result.run_dir = value.strip("'\"") or None
        elif word.startswith("-"):
            result.flags.append(word)
            if word in ("--cfg", "-c", "--package", "-p", "--info") and rest:
                result.flags.append(rest.pop(0))
        else:
            result.overrides.append(word)
    return result


def compose(arguments: Arguments) -> Config:
    """The configuration that `arguments` ask for.

    Raises:
        ConfigError, UserError: an unknown key or name, a wrong type, a missing value.
    """
    overrides = list(arguments.overrides)
    if arguments.config_dir:
        folder = Path(arguments.config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir: {folder} is not a directory")
        overrides.append(f"hydra.searchpath=['file://{folder}']")
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            tree = hydra_compose(arguments.config_name, overrides=overrides)
        config = parse(to_plain(tree))
    except HydraException as error:
        raise _readable(error) from None
    return config if arguments.run_dir is None else replace(config, run_dir=arguments.run_dir)


def to_plain(tree: Any) -> dict[str, Any]:
    """A composed tree as plain dictionaries, interpolations resolved.

    Raises:
        ConfigError: a value that has to be given was not.
    """
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError.required(str(error.full_key)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), "an unusable value", str(error)) from None
    return {str(key): value for key, value in plain.items()}  # type: ignore[union-attr]


def samples_of_sweep(arguments: Arguments) -> list[Arguments]:
    """`arguments` for single runs: the first value of every list of a sweep, then each other
    value once, beside the first ones of the other lists."""
    try:
        parsed = OverridesParser.create().parse_overrides(arguments.overrides)
    except HydraException as error:
        raise _readable(error) from None
    values = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [text]
        for text, override in zip(arguments.overrides, parsed, strict=True)
    ]
    first = [several[0] for several in values]
    samples = [first]
    for at, several in enumerate(values):
        samples += [[*first[:at], choice, *first[at + 1 :]] for choice in several[1:]]
    where = arguments.run_dir, arguments.config_dir, arguments.config_name
    return [Arguments(words, [], *where) for words in samples]


def _readable(error: HydraException) -> UserError:
    """Hydra's error in the words of this package, with what may have been meant."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, got = str(error.missing_cfg_file).rpartition("/")
        names = error.options or choices(group)
        near = difflib.get_close_matches(got, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        return ConfigError(group, got, ", ".join(names) or "null", hint)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0]
        return UserError(
            f"{error.override}: is not of the form key=value ({reason}). Lists and groups are "
            "[1,2] and {key:value}, in quotes for the shell"
        )
    text = str(error).partition("Config search path")[0].strip()
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{str(cause).splitlines()[0]}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    return UserError(f"{unknown[1]}: no such key; {suggestion(unknown[1])}" if unknown else text)
