"""Checks that all processes of a run have the same configuration, data and code."""

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
    """Compares the settings of this process with the settings of all other processes.

    Args:
        backend: `gloo` or `nccl`, after `pipeline.backend=auto` has been resolved.

    Raises:
        ConsistencyError: the processes differ; the message has the first key and its values.
    """
    mine = {
        **flatten(to_tree(config)),
        "data listing": data.fingerprint,
        "backend in use": backend,
        "code": code_version(),
    }
    by_rank = [json.loads(text) for text in group.exchange("agreement", json.dumps(mine))]
    group.wait_for_departure("agreement")
    compare(by_rank)


def compare(by_rank: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConsistencyError for the first key, in sorted order, whose values differ.

    NaN equals NaN.
    """
    for key in sorted(set().union(*by_rank)):
        values = [settings.get(key) for settings in by_rank]
        if any(not same(value, values[0]) for value in values):
            ranks_of: dict[str, list[int]] = {}
            for rank, value in enumerate(values):
                ranks_of.setdefault(json.dumps(value), []).append(rank)
            parts = "; ".join(f"ranks {ranks} have {value}" for value, ranks in ranks_of.items())
            raise ConsistencyError(
                f"the processes disagree about {key}: {parts}. "
                "Start all of them with the same command, files and version of dglpipe"
            )


def same(one: Any, other: Any) -> bool:
    """Whether two settings are equal. NaN equals NaN, unlike with `==`."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Converts nested dictionaries to one dictionary with dotted keys."""
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
