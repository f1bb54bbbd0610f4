"""Command-line overrides: their grammar, and the errors that Hydra does not report by key."""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from dglpipe.cli.config_groups import choices, config_file, groups, suggestion
from dglpipe.errors import ConfigError, UserError, clipped

MOST_JOBS = 10_000
"""Upper limit of the jobs of a sweep."""
SWEEP_KEYS = ("hydra.sweeper.", "hydra.launcher.", "hydra/sweeper", "hydra/launcher")
"""Beginnings of the keys of Hydra that a sweep may set."""
SELECTORS = ("family", "name")
"""Keys of a group that name its choice."""


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parses overrides in Hydra's grammar.

    Raises:
        UserError: a word is not an override.
    """
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise readable(error) from None
    except RecursionError:
        raise UserError("overrides: got lists or groups that are nested too deep") from None


def check_overrides(overrides: Sequence[Override], sweep: bool) -> None:
    """Checks the overrides of groups and of Hydra's own keys.

    Raises:
        ConfigError: a group with a value that is not the name of a choice, or a key of Hydra that
            has no effect.
    """
    known = groups()
    for override in overrides:
        key = override.key_or_group
        if key.partition(".")[0].partition("/")[0] == "hydra":
            _check_hydra_key(override, sweep)
        if key in known and not override.is_delete():
            for value in values_of(override):
                _check_choice(key, value)


def values_of(override: Override) -> list[Any]:
    """The values of an override of a sweep; of another override, its only value.

    Raises:
        ConfigError: no value, or too many.
    """
    if not override.is_sweep_override():
        return [override.value()]
    try:
        values = list(itertools.islice(override.sweep_iterator(), MOST_JOBS + 1))
    except HydraException as error:
        allowed = f"a sweep of values ({error})"
        raise ConfigError(override.key_or_group, override.input_line, allowed) from error
    allowed = f"1 to {MOST_JOBS} values in a sweep"
    if not 1 <= len(values) <= MOST_JOBS:
        raise ConfigError(override.key_or_group, override.input_line, allowed)
    return values


def _check_hydra_key(override: Override, sweep: bool) -> None:
    key = override.key_or_group
    if key == "hydra.searchpath" or (sweep and key.startswith(SWEEP_KEYS)):
        return
    allowed = "hydra.searchpath, and with -m hydra.sweeper.KEY and hydra.launcher.KEY"
    hint = "run_dir=DIR is the directory of the results"
    raise ConfigError(key, override.input_line, allowed, hint)


def _check_choice(group: str, value: object) -> None:
    """Checks the value of an override `group=value`, which must be the name of a choice."""
    if isinstance(value, str) and value:
        return
    names = [value] if not isinstance(value, list) else value
    if group == "experiment" and all(one is None or isinstance(one, str) for one in names):
        return
    hint = f"Give one name: {group}={default_name(group)}"
    if isinstance(value, Mapping):
        hint = f"Give its keys one by one: {as_settings(group, value)}"
    raise ConfigError(group, value, f"a name of {', '.join(choices(group))}", hint)


def default_name(group: str) -> str:
    """The first choice of `group`."""
    return choices(group)[0]


def as_settings(group: str, value: Mapping[Any, Any]) -> str:
    """The overrides that give `group` the settings `value`, quoted for the shell."""
    settings = dict(value)
    name = settings.pop("name", None)
    settings.pop("family", None)
    if "_target_" in settings:
        target = settings.pop("_target_")
        settings = {"target": target, "args": settings}
    if "target" in settings:
        name = "custom"
    words = [f"{group}={name or default_name(group)}"]
    words += [f"{group}.{key}={_in_grammar(item)}" for key, item in settings.items()]
    return " ".join(map(shlex.quote, words))


def _in_grammar(value: object) -> str:
    """`value` in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_in_grammar(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_grammar, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def check_selectors(tree: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Checks that no setting names another choice of a group than the group.

    Args:
        tree: composed configuration.
        chosen: group -> name of the choice.

    Raises:
        ConfigError: `method=sequential method.name=dgl`, for example.
    """
    for group, choice in chosen.items():
        node = tree.get(group)
        if not isinstance(node, Mapping) or choice not in choices(group):
            continue
        if group != "model" and node.get("name") == choice:
            continue  # spares reading the file: a choice and its setting `name` have one name
        own = config_file(f"{group}/{choice}.yaml")
        for key in SELECTORS:
            wanted, got = own.get(key, "???"), node.get(key)
            if wanted not in ("???", got):
                hint = f"Give {group}={got}" if got in choices(group) else "Leave the key out"
                allowed = f"{wanted} with {group}={choice}"
                raise ConfigError(f"{group}.{key}", got, allowed, hint)


def samples(words: Sequence[str]) -> list[list[str]]:
    """Overrides of single runs that together contain every value of a sweep.

    The first run has the first value of every list. Each further run replaces one of these
    values.

    Raises:
        UserError: as `parse_overrides` and `values_of`, or too many jobs.
    """
    parsed = parse_overrides(words)
    values = [list(_words(text, one)) for text, one in zip(words, parsed, strict=True)]
    jobs = 1
    for several in values:
        jobs *= len(several)
    if jobs > MOST_JOBS:
        raise UserError(f"-m: got {jobs} jobs; allowed: 1 to {MOST_JOBS}")
    first = [several[0] for several in values]
    result = [first]
    for at, several in enumerate(values):
        result += [[*first[:at], choice, *first[at + 1 :]] for choice in several[1:]]
    return result


def _words(text: str, override: Override) -> Iterator[str]:
    """The overrides of single runs for one override of a sweep."""
    if not override.is_sweep_override():
        yield text
        return
    assert values_of(override)
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"


def readable(error: HydraException) -> UserError:
    """Translates an error of Hydra to an error that names the key and suggests a fix."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, got = str(error.missing_cfg_file).rpartition("/")
        names = error.options or choices(group)
        near = difflib.get_close_matches(got, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        return ConfigError(group, got, ", ".join(names) or "null", hint)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0]
        word = clipped(str(error.override))
        return UserError(
            f"{word}: is not of the form key=value ({reason}). Quote lists and "
            "mappings for the shell: 'key=[1,2]' and 'key={name:value}'"
        )
    text = str(error).partition("Config search path")[0].strip()
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{str(cause).splitlines()[0]}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    return UserError(f"{unknown[1]}: no such key; {suggestion(unknown[1])}" if unknown else text)
