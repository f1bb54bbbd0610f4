"""dglpipe: layer-parallel training by Decoupled Greedy Learning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dglpipe.api import load, split, train

__all__ = ["__version__", "load", "split", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads torch when something is called that needs it, not for `dglpipe --version`."""
    if name in ("load", "split", "train"):
        from dglpipe import api

        return getattr(api, name)
    raise AttributeError(f"module 'dglpipe' has no attribute {name!r}")
