"""Whether all processes mean the same run: configuration, data and code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dglpipe.config import Config, to_tree
from dglpipe.data import DataInfo
from dglpipe.errors import ConsistencyError
from dglpipe.pipeline.process_group import ProcessGroup


def check_consistency(group: ProcessGroup, config: Config, data: DataInfo, backend: str) -> None:
    """Compares this process with all others.

    Args:
        backend: that `pipeline.backend=auto` has become here.

    Raises:
        ConsistencyError: names the first key that differs, with what each rank has.
    """
    mine = {
        **flatten(to_tree(config)),
        "data listing": data.fingerprint,
        "backend in use": backend,
        "code": code_version(),
    }
    said = [json.loads(text) for text in group.exchange("agreement", json.dumps(mine))]
    group.wait_for_departure("agreement")
    compare(said)


def compare(said: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConsistencyError at the first key on which the ranks, in order, differ."""
    for key in sorted(set().union(*said)):
        values = [rank.get(key) for rank in said]
        if any(value != values[0] for value in values):
            who: dict[str, list[int]] = {}
            for rank, value in enumerate(values):
                who.setdefault(json.dumps(value), []).append(rank)
            parts = "; ".join(f"ranks {ranks} have {value}" for value, ranks in who.items())
            raise ConsistencyError(
                f"the processes disagree about {key}: {parts}. "
                "Start all of them with the same command, files and version of dglpipe"
            )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def code_version() -> str:
    """A hash of the package's own source files."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
