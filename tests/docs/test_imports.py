"""The packages import one another in the order of docs/architecture.md, without cycles."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from harness.paths import ROOT

PACKAGE = ROOT / "src" / "dglpipe"


def part(marker: str) -> str:
    """The text between `<!-- marker -->` and `<!-- /marker -->`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", text, re.DOTALL)
    assert found, f"docs/architecture.md has no <!-- {marker} --> part"
    return found[1]


ENTRY_POINTS = {"api", "__main__"}
"""Files at the root that may import every package."""


@cache
def packages() -> list[str]:
    """The packages in the order in which they may be imported."""
    return [line.split("|")[1].strip(" `") for line in part("packages").splitlines()[2:]]


@cache
def modules() -> dict[str, Path]:
    """`link`, `data.order`, `cli.main`, ...; a package by its name. `dglpipe` itself is left out:
    it holds the version and imports nothing."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del names[""]
    return names


@cache
def imported(module: str) -> set[str]:
    """All that `module` imports, by full name, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            names |= {f"{node.module}.{item.name}" for item in node.names}
    return names


@cache
def own(module: str) -> set[str]:
    """The modules of the package that `module` imports."""
    result = set()
    for name in imported(module):
        path = name.removeprefix("dglpipe.")
        if path == name:
            continue
        while path and path not in modules():
            path = path.rpartition(".")[0]
        result |= {path} if path else set()
    return result


def unit(module: str) -> str:
    """The package of a module."""
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else "root"


def place(module: str) -> int:
    return len(packages()) if module in ENTRY_POINTS else packages().index(unit(module))


def test_every_module_has_a_place():
    assert sorted(packages()) == sorted({unit(module) for module in modules()})
    assert len(list(PACKAGE.glob("*.*"))) <= 10


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module):
    wrong = [
        other
        for other in own(module)
        if unit(other) != unit(module) and place(other) > place(module)
    ]
    assert not wrong, f"{module} imports {wrong}, which docs/architecture.md puts below it"


def test_there_is_no_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in own(module):
                visit(other, (*path, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def owners() -> list[tuple[str, set[str]]]:
    rows = [line.split("|")[1:3] for line in part("owners").splitlines()[2:]]
    return [
        (library.strip(" `"), set(re.findall(r"`([a-z0-9_.]+)`", who))) for library, who in rows
    ]


def named(module: str) -> set[str]:
    """All that `module` imports or reaches by a dotted name."""
    tree = ast.parse(modules()[module].read_text())
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return imported(module) | chains


@pytest.mark.parametrize(("library", "known_to"), owners())
def test_library_is_known_to_its_owners_only(library, known_to):
    uses = re.compile(rf"{re.escape(library)}(\.|$)")
    users = {module for module in modules() if any(map(uses.match, named(module)))}
    found = {unit(user) if unit(user) in known_to else user for user in users}
    assert found == known_to


@pytest.mark.parametrize("module", sorted(modules()))
def test_the_package_does_not_print(module):
    tree = ast.parse(modules()[module].read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_imports_inside_functions_are_seen():
    """`data` and `models.library` import late, to save seconds."""
    assert "data.image_folder" in own("data")
    assert "torchvision.models.get_model_builder" in imported("models.library")
