"""Limits of numbers, texts and paths, for every key alike."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from dglpipe.cli.arguments import Arguments
from dglpipe.cli.compose import compose
from dglpipe.config import from_yaml, parse, to_tree, to_yaml
from dglpipe.config.build import literal, unescaped
from dglpipe.errors import ConfigError

DATA = {
    "synthetic": {"samples": 8, "classes": 3, "channels": 1, "image_size": 8, "noise": 1.0},
    "image_folder": {"root": "images", "workers": 0, "image_size": 8, "memory_limit_mb": 1},
}


@functools.cache
def default() -> dict[str, Any]:
    return to_tree(compose(Arguments()))


def tree_with(**groups):
    """The default configuration with other values of some groups or keys."""
    tree = dict(default())
    for key, value in groups.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return tree


def numbers() -> list[tuple[str, Any]]:
    """(key, tree with a place for its value) of every number of the default configuration and of
    the data sets."""
    trees = [
        default(),
        *({**default(), "data": {"name": name, **own}} for name, own in DATA.items()),
    ]
    found = {}
    for tree in trees:
        for group, node in tree.items():
            values = node if isinstance(node, dict) else {"": node}
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found[f"{group}.{name}".rstrip(".")] = tree
    return list(found.items())


@pytest.mark.parametrize(("key", "tree"), numbers(), ids=[key for key, _ in numbers()])
def test_no_number_may_be_of_another_kind_or_absurd(key, tree):
    group, _, name = key.partition(".")
    for value in (1e300, float("nan"), 10**400, None, []):
        if value is None and name in ("workers", "image_size"):
            continue
        node = {**tree[group], name: value} if name else value
        with pytest.raises(ConfigError) as caught:
            parse({**tree, group: node})
        assert caught.value.key == key


@pytest.mark.parametrize("group", sorted(set(default()) - {"per_stage"}))
@pytest.mark.parametrize("value", [[], [None], "\udcff", object()])
def test_no_group_and_no_key_may_be_something_else(group, value):
    with pytest.raises(ConfigError) as caught:
        parse({**default(), group: value})
    assert caught.value.key.partition(".")[0].partition("[")[0] == group


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 1e30),
        ("optimizer.lr", 1e-40),
        ("optimizer.weight_decay", 1e300),
        ("label_smoothing", 1.0),
        ("timeout_s", 1e-9),
        ("link.delay_ms", 1e300),
        ("link.bandwidth_mbps", 1e-300),
        ("link.bandwidth_mbps", 5e-324),
        ("pipeline.depth", 10**9),
        ("pipeline.memory_limit", "9" * 400 + "GB"),
        ("model.width", 10**8),
        ("data.image_size", 2**31),
        ("run_dir", "a/" * 2500),
        ("run_dir", "~nobody_at_all/x"),
        ("model.weights", "a" * 300),
        ("model.weights", "a\0b"),
    ],
)
def test_limits(key, value):
    group, _, name = key.partition(".")
    with pytest.raises(ConfigError) as caught:
        parse(tree_with(**{group: {name: value} if name else value}))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"a": "\udcff"}, "head.args.a"),
        ({"a": [2**64]}, "head.args.a[0]"),
        ({1: 2}, "head.args"),
        ({"a": object()}, "head.args.a"),
        ([1], "head.args"),
    ],
)
def test_arguments_of_plug_ins(args, key):
    head = {"name": "custom", "target": "a.b", "args": args}
    with pytest.raises(ConfigError) as caught:
        parse({**default(), "head": head})
    assert caught.value.key == key


def test_lists_are_not_nested_too_deep():
    args: Any = 1
    for _ in range(100):
        args = [args]
    head = {"name": "custom", "target": "a.b", "args": {"a": args}}
    with pytest.raises(ConfigError, match="inside each other"):
        parse({**default(), "head": head})


@pytest.mark.parametrize(
    "text", ["a${b}c", "a${b", r"a\${b}", r"a\\${b}", "${oc.env:HOME}", "$", "${${a}}", "x\\"]
)
def test_texts_are_kept_as_they_are(text):
    """OmegaConf would read `${` as an interpolation."""
    config = parse(tree_with(run_dir=text))
    assert config.run_dir == text
    assert from_yaml(to_yaml(config)) == config
    assert unescaped(literal({"a": [text]})) == {"a": [text]}
