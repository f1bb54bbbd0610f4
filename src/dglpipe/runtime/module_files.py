"""Finds the files that the import of a module would execute, without importing anything."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def module_files(path: str, folders: Sequence[str] = ()) -> dict[str, Path | None] | None:
    """The modules that the import of `path` executes, from the outermost package on.

    Args:
        path: full name of a module, `package.module` for example.
        folders: folders to search after `sys.path`.

    Returns:
        Name -> file; None instead of a file that is not on a disk. Packages without a file of
        their own are left out. None if there is no such module.
    """
    importlib.invalidate_caches()
    files: dict[str, Path | None] = {}
    search = [*sys.path, *folders]
    for name in itertools.accumulate(path.split("."), "{}.{}".format):
        imported = name in sys.modules
        spec = getattr(sys.modules[name], "__spec__", None) if imported else _find(name, search)
        if spec is None:
            return None
        if spec.has_location:
            files[name] = Path(str(spec.origin)).resolve()
        elif spec.origin is not None or spec.submodule_search_locations is None:
            files[name] = None
        search = [*(spec.submodule_search_locations or [])]
    return files


def _find(name: str, search: list[str]) -> ModuleSpec | None:
    """Finds one module in the folders `search`, or by one of Python's other finders."""
    is_top = "." not in name
    for finder in sys.meta_path:
        if finder is PathFinder:
            # Without the name of its package. With it, Python would look for the folders of a
            # package without a file in the imported package.
            spec = PathFinder.find_spec(name.rpartition(".")[2], search)
        else:
            spec = finder.find_spec(name, None if is_top else search)
        if spec is not None:
            return spec
    return None
