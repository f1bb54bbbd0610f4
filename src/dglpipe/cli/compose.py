"""Composition of a checked configuration from command-line arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dglpipe.cli.arguments import Arguments
from dglpipe.cli.config_groups import CONFIG_MODULE
from dglpipe.cli.overrides import (
    check_overrides,
    check_selectors,
    parse_overrides,
    readable,
    samples,
)
from dglpipe.config import Config, parse
from dglpipe.config.checks import require_path
from dglpipe.errors import ConfigError, UserError, clipped


def compose(arguments: Arguments) -> Config:
    """Composes and checks the configuration that `arguments` describe.

    Raises:
        ConfigError, UserError: unknown key or name, wrong type, or missing value.
    """
    overrides = list(arguments.overrides)
    parsed = parse_overrides(overrides)
    if not arguments.flags:
        check_overrides(parsed, arguments.sweep)
    if arguments.config_dir is not None:
        overrides.append(f"hydra.searchpath=['file://{_config_dir(arguments.config_dir)}']")
    require_path("--config-name", arguments.config_name)
    tree, chosen = _compose(arguments.config_name, overrides)
    plain = to_plain(tree)
    check_selectors(plain, chosen)
    if arguments.run_dir is not None:
        plain["run_dir"] = arguments.run_dir
    return parse(plain)


def _config_dir(path: str) -> Path:
    require_path("--config-dir", path)
    folder = Path(path).resolve()
    if not path or not folder.is_dir():
        raise UserError(f"--config-dir: got {path!r}; allowed: a directory")
    return folder


def _compose(name: str, overrides: list[str]) -> tuple[Any, dict[str, Any]]:
    """The composed tree, and group -> choice."""
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            tree = hydra_compose(name, overrides=overrides, return_hydra_config=True)
    except HydraException as error:
        raise readable(error) from None
    except Exception as error:  # Hydra raises any exception for overrides that it does not expect
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        words = " ".join(overrides)
        raise UserError(
            f"overrides: got {clipped(words)!r}; Hydra cannot read them ({reason})"
        ) from error
    chosen = dict(tree.hydra.runtime.choices)
    with open_dict(tree):
        del tree["hydra"]
    return tree, chosen


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
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{error.full_key}: cannot be resolved ({reason}). Write \\${{ for the characters ${{"
        ) from None
    return {str(key): value for key, value in plain.items()}  # type: ignore[union-attr]


def samples_of_sweep(arguments: Arguments) -> list[Arguments]:
    """Arguments of single runs that together contain every value of a sweep; see `samples`."""
    rest = arguments.run_dir, arguments.config_dir, arguments.config_name, True
    return [Arguments(words, [], *rest) for words in samples(arguments.overrides)]
