"""docs/configuration.md lists every key with its actual default."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import pytest
from omegaconf import OmegaConf

from dglpipe import config as schema
from dglpipe.cli.compose import Arguments, compose
from dglpipe.cli.config_groups import choices, groups
from dglpipe.config import Config, parse, to_tree
from harness.paths import ROOT

SELECTORS = {"name", "family"}
ROW = re.compile(r"^\| `(?P<key>[a-z_.]+)` \| (?P<default>`[^`]*`|required) \| (?P<text>.+) \|$")


@cache
def sections() -> dict[str, dict[str, str]]:
    """Heading -> key -> default, for the headings that have a table of keys."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        row = ROW.match(line)
        if row:
            found.setdefault(heading, {})[row["key"]] = row["default"].strip("`")
    return found


def chosen() -> list[tuple[str, dict[str, str]]]:
    """(`group=choice`, its keys) for every heading that names choices."""
    lines = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    headings = [line.lstrip("# ") for line in lines if line.startswith("### `")]
    return [
        (choice, sections().get(heading, {}))
        for heading in headings
        for choice in re.findall(r"`([a-z_]+=[a-z0-9_]+)`", heading)
    ]


def shipped(choice: str) -> dict[str, object]:
    """The keys of the file of a choice, without the keys that select it."""
    group, _, name = choice.partition("=")
    tree = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml"))
    free = {key for key, value in tree.items() if value == "???"}  # required, not selectors
    return {f"{group}.{key}": value for key, value in tree.items() if key not in SELECTORS - free}


@pytest.mark.parametrize(("choice", "keys"), chosen(), ids=lambda item: str(item)[:40])
def test_choice_has_these_keys_and_defaults(choice, keys):
    common = sections().get(f"`{choice.partition('=')[0]}`", {})
    documented = {
        key: "???" if default == "required" else OmegaConf.to_container(value(default))["v"]
        for key, default in {**common, **keys}.items()
    }
    assert documented == shipped(choice)


def value(text: str):
    return OmegaConf.create(f"v: {text}")


def test_every_choice_is_described():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for group in groups():
        for name in choices(group) if group != "experiment" else []:
            assert f"`{group}={name}`" in text or f"`{name}`" in text, f"{group}={name}"


@pytest.mark.parametrize("heading", ["Run", "`pipeline`", "`evaluate`", "`checkpoint`"])
def test_settings_without_choices(heading):
    tree = to_tree(compose(Arguments()))
    conf = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "config.yaml"))
    group = heading.strip("`")
    if heading == "Run":
        top = {item.name for item in dataclasses.fields(Config)}
        expected = {key: conf[key] for key in top if not isinstance(tree[key], dict)}
    else:
        expected = {f"{group}.{key}": default for key, default in conf[group].items()}
    documented = {
        key: OmegaConf.to_container(value(default))["v"]
        for key, default in sections()[heading].items()
    }
    assert documented == expected


def test_every_field_of_the_schema_appears():
    documented = {key for keys in sections().values() for key in keys}
    missing = {
        f"{group}.{item.name}"
        for group, kinds in schema_classes().items()
        for kind in kinds
        for item in dataclasses.fields(kind)
        if item.name not in SELECTORS
    } - documented
    assert not missing


def schema_classes() -> dict[str, tuple[type, ...]]:
    return {
        "model": (*schema.MODEL_FAMILIES.values(), schema.PluginConfig),
        "head": (schema.HeadConfig, schema.PluginConfig),
        "local": (schema.LocalConfig,),
        "data": (*schema.DATA_SETS.values(), schema.PluginConfig),
        "optimizer": tuple(schema.OPTIMIZERS.values()),
        "schedule": tuple(schema.SCHEDULES.values()),
        "method": tuple(schema.METHODS.values()),
        "precision": (schema.PrecisionConfig,),
        "pipeline": (schema.PipelineConfig,),
        "link": (schema.LinkConfig,),
        "evaluate": (schema.EvaluateConfig,),
        "probe": (schema.ProbeConfig,),
        "checkpoint": (schema.CheckpointConfig,),
    }


def test_schema_classes_are_all_groups_of_a_run():
    """A group that is new in the schema has to be looked up in this test too."""
    tree = to_tree(compose(Arguments()))
    assert schema_classes().keys() == {key for key, item in tree.items() if isinstance(item, dict)}


@pytest.mark.parametrize("group", ["optimizer", "schedule"])
def test_a_choice_has_the_same_defaults_by_command_line_and_by_per_stage(group):
    kinds = schema.OPTIMIZERS if group == "optimizer" else schema.SCHEDULES
    for name in kinds:
        whole = compose(Arguments([f"{group}={name}"]))
        single = compose(Arguments([f"per_stage=[{{}},{{{group}:{name}}}]"])).stage(1)
        assert getattr(whole, group) == getattr(single, group)


def test_resolved_configuration_is_read_back():
    config = compose(Arguments(["model=vgg11_bn", "data=synthetic", "pipeline.stages=3"]))
    assert parse(to_tree(config)) == config
