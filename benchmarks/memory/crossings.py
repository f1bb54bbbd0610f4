"""Device memory from which on one method needs less than another, in rows of `memory.py`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20


def fullest(row: Mapping[str, Any]) -> float:
    """MiB at the peak of the process that needs most."""
    bytes_: int = max(sum(peak.values()) for peak in row["peak_bytes"])
    return bytes_ / MIB


def crossings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The device memory, and its batch, from which on another method needs less memory.

    Between two measured sizes of the batch, memory is interpolated linearly.
    """
    by_count: dict[int, dict[str, dict[int, float]]] = {}
    for row in rows:
        needs = by_count.setdefault(row["processes"], {})
        needs.setdefault(row["method"], {})[row["batch"]] = fullest(row)
    lines = []
    for count, needs in by_count.items():
        for one, other in itertools.combinations(needs, 2):
            for a, b in itertools.pairwise(needs[one]):
                before, after = (needs[one][at] - needs[other][at] for at in (a, b))
                if before * after < 0:
                    share = before / (before - after)
                    size = needs[one][a] + share * (needs[one][b] - needs[one][a])
                    low, high = (one, other) if before < 0 else (other, one)
                    lines.append(
                        f"{count} processes: {low} needs less up to {size:.0f} MiB, {high} from "
                        f"there on (batch {a + share * (b - a):.0f})"
                    )
    return lines
