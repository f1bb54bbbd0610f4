"""Composition of a checked configuration from command-line arguments."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dglpipe.cli.arguments import Arguments
from dglpipe.cli.config_groups import CONFIG_MODULE, choices, suggestion
from dglpipe.config import Config, parse
from dglpipe.errors import ConfigError, UserError


def compose(arguments: Arguments) -> Config:
    """Composes and checks the configuration that `arguments` describe.

    Raises:
        ConfigError, UserError: unknown key or name, wrong type, or missing value.
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
    """Converts a composed tree to plain dictionaries and resolves interpolations.

    Raises:
        UserError: a required value is missing, or an interpolation cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError.required(str(error.full_key)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), "an unusable value", str(error)) from None
    return {str(key): value for key, value in plain.items()}  # type: ignore[union-attr]


def samples_of_sweep(arguments: Arguments) -> list[Arguments]:
    """Arguments of single runs that together contain every value of a sweep.

    The first run has the first value of every list. Each further run replaces one of these
    values.
    """
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
    rest = arguments.run_dir, arguments.config_dir, arguments.config_name
    return [Arguments(words, [], *rest) for words in samples]


def _readable(error: HydraException) -> UserError:
    """Translates an error of Hydra to an error that names the key and suggests a fix."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, got = str(error.missing_cfg_file).rpartition("/")
        names = error.options or choices(group)
        near = difflib.get_close_matches(got, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        return ConfigError(group, got, ", ".join(names) or "null", hint)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0]
        return UserError(
            f"{error.override}: is not of the form key=value ({reason}). Quote lists and "
            "mappings for the shell: 'key=[1,2]' and 'key={name:value}'"
        )
    text = str(error).partition("Config search path")[0].strip()
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{str(cause).splitlines()[0]}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    return UserError(f"{unknown[1]}: no such key; {suggestion(unknown[1])}" if unknown else text)
