"""dglpipe: layer-parallel training by Decoupled Greedy Learning.

`train`, `load` and `split` (in `api`) are the public functions. A package imports only packages
that come before it in this list: `config`, `data`, `models`, `monitoring`, `pipeline` (stages and
links), `partition` (stages from a network), `methods` (how stages learn), `runtime` (a run), `cli`.
`errors`, `files`, `host`, `manifest`, `seeds` and `streams` are small modules that every package
may import.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than this package
if TYPE_CHECKING:
    from typing import Any

    from dglpipe.api import load, split, train

__version__ = "0.1.0"

__all__ = ["__version__", "load", "split", "train"]


def __getattr__(name: str) -> Any:
    """Imports `dglpipe.api`, and torch with it, at the first use of a function."""
    if name in __all__:
        from dglpipe import api

        return getattr(api, name)
    raise AttributeError(f"module 'dglpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
