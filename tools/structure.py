"""Print figures of the structure of one or more checkouts, side by side.

    python tools/structure.py CHECKOUT...

A unit is a module or package directly below the package `dglpipe`. An import edge is an ordered
pair of units where the first imports the second anywhere, in functions and for type checkers
too. A function's lines include its docstring and inner functions, but not its decorators. A private
function is a function or method named `_name` but not `__name__`; calls are counted by name, in
the whole package if only one module defines the name, else in each module that does. References
are counted in the module of the definition: calls, and functions that are passed on. An override
that only a base class in another module calls has no reference. The figures come from the files in
the folders, committed or not.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

PACKAGE = "dglpipe"
LONG = 80
LEFT_OUT = {"build", "dist", "runs", "__pycache__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name below the package, and its syntax tree."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def unit(self) -> str:
        """Module or package directly below the package; the package's own file is `__init__`."""
        return self.name.partition(".")[0] or "__init__"

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def calls(self) -> Counter[str]:
        """How often each name is called, as `name()` or `anything.name()`."""
        called = [node.func for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        names = [one.id if isinstance(one, ast.Name) else _attribute(one) for one in called]
        return Counter(names)

    @cached_property
    def references(self) -> Counter[str]:
        """How often each name is read, as `name` or `anything.name`."""
        names = Counter(n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name))
        names.update(n.attr for n in ast.walk(self.tree) if isinstance(n, ast.Attribute))
        return names

    def imports(self) -> Iterator[str]:
        """Dotted names below the package that the module imports; the last part may be a name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (_below(alias.name) for alias in node.names if _is_own(alias.name))
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                if _is_own(base):
                    yield from (_below(f"{base}.{alias.name}") for alias in node.names)

    def _base(self, node: ast.ImportFrom) -> str:
        """The module of a `from` import, as an absolute name."""
        if not node.level:
            return node.module or ""
        parts = [PACKAGE, *filter(None, self.name.split("."))]
        kept = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*kept, *filter(None, [node.module])])


def _attribute(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _below(name: str) -> str:
    return name.partition(".")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    tables = [figures(root) for root in parser.parse_args().checkouts]
    for name in tables[0]:
        print(f"{name:52}", *(f"{table[name]:>30}" for table in tables))


def figures(root: Path) -> dict[str, str]:
    """All figures of a checkout, by name."""
    modules = read_modules(root / "src" / PACKAGE)
    functions = [(lines(function), name) for name, function in named_functions(modules)]
    longest = max(functions, default=(0, "none"))
    private = len(private_functions(modules))
    return {
        "checkout": root.resolve().name,
        "python files at the root of the package": str(
            len(list((root / "src" / PACKAGE).glob("*.py")))
        ),
        "packages inside the package": str(sum(m.is_package for m in modules if m.name)),
        "units": str(len({module.unit for module in modules})),
        "import edges between units": str(len(edges(modules))),
        "functions": str(len(functions)),
        "median function, lines": f"{median([size for size, _ in functions] or [0]):g}",
        "longest function, lines": str(longest[0]),
        "longest function": longest[1],
        f"functions over {LONG} lines": str(sum(size > LONG for size, _ in functions)),
        "private functions": str(private),
        "of them called exactly once": str(called_once(modules)),
        "of them with at most one reference": str(referenced_once(modules)),
        **sizes(root),
    }


def sizes(root: Path) -> dict[str, str]:
    """Lines and words of the files of a checkout."""
    code = {"source": "src", "tests": "tests", "benchmarks": "benchmarks", "tools": "tools"}
    readme = root / "README.md"
    return {
        **{
            f"lines of {what} (py)": str(count_lines(root / at, ".py")) for what, at in code.items()
        },
        "lines of result files (json, jsonl)": str(count_lines(root, ".json", ".jsonl")),
        "words of README.md": str(len(readme.read_text().split()) if readme.exists() else 0),
    }


def count_lines(folder: Path, *suffixes: str) -> int:
    """Lines of all files with these suffixes, without hidden folders and build outputs."""
    total = 0
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix in suffixes and not any(p in LEFT_OUT or p[0] == "." for p in parts):
            total += len(path.read_text().splitlines())
    return total


def read_modules(package: Path) -> list[Module]:
    """All modules of the package, sorted by name."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, is_package, ast.parse(path.read_text())))
    return modules


def edges(modules: list[Module]) -> set[tuple[str, str]]:
    """Ordered pairs of different units where the first imports the second."""
    units = {module.unit for module in modules}
    pairs = set()
    for module in modules:
        for name in module.imports():
            unit = name.partition(".")[0]
            pairs.add((module.unit, unit if unit in units else "__init__"))
    return {(one, other) for one, other in pairs if one != other}


def named_functions(modules: list[Module]) -> Iterator[tuple[str, Function]]:
    """Every function and method with `module.name`."""
    for module in modules:
        for function in module.functions:
            yield f"{module.name or PACKAGE}.{function.name}", function


def lines(function: Function) -> int:
    """From `def` to the last line."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def private_functions(modules: list[Module]) -> list[tuple[str, Module]]:
    """Names of all private functions, each with its module."""
    named = [(function.name, module) for module in modules for function in module.functions]
    return [(n, module) for n, module in named if n.startswith("_") and not n.endswith("__")]


def called_once(modules: list[Module]) -> int:
    """Private functions that are called exactly once."""
    private = private_functions(modules)
    homes: dict[str, set[str]] = {}
    for name, module in private:
        homes.setdefault(name, set()).add(module.name)
    everywhere: Counter[str] = Counter()
    for module in modules:
        everywhere.update(module.calls)
    counts = (
        everywhere[name] if len(homes[name]) == 1 else module.calls[name]
        for name, module in private
    )
    return sum(count == 1 for count in counts)


def referenced_once(modules: list[Module]) -> int:
    """Private functions with at most one reference in their module."""
    return sum(module.references[name] <= 1 for name, module in private_functions(modules))


if __name__ == "__main__":
    main()
