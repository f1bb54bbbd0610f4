"""What asynchronous learning says of its buffers: how old, how often, how many."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dglpipe.methods.dgl_async.replay import InOrder, Replay


def ages(made: Sequence[int], read: Sequence[int], numbers: Sequence[int]) -> Counter[int]:
    """Number of reads of each age: outputs that the stage below had made since, come or not.

    Args:
        made: when it made its outputs, rising.
        read: when each read was, by the same timer.
        numbers: of the outputs that were read, from 1.
    """
    pairs = zip(read, numbers, strict=True)
    # Clocks of two machines differ: nothing is read before it is made.
    return Counter(max(0, bisect_right(made, when) - number) for when, number in pairs)


def summarize(
    replay: Replay[Any] | InOrder[Any] | None,
    updates: int,
    outputs: int,
    dropped: int = 0,
    waits: int = 0,
    buffer_bytes: int = 0,
) -> dict[str, Any]:
    """The entry of a stage in `staleness` of `summary.json`.

    Args:
        replay: the buffer that it reads; None: it reads the data set.
        updates: that it has made.
        outputs: that it has handed on or dropped.
        dropped: of those, replaced before they were sent.
        waits: how often it came to a buffer in which nothing could be read.
        buffer_bytes: of the batches in the buffer, at most.
    """
    mine = {"updates": updates, "outputs": outputs, "dropped": dropped, "waits": waits}
    if replay is None:
        return {**mine, "reads": None}
    usage, reads = replay.usage, replay.usage.reads
    total = sum(age * count for age, count in usage.ages.items())
    entries = replay.reads_by_entry()
    return {
        **mine,
        "reads": reads,
        "repeats": usage.repeats,
        "handed_on": usage.handed_on,
        "mean_age": total / reads if reads else None,
        "ages": {str(age): usage.ages[age] for age in sorted(usage.ages)},
        "received": usage.written,
        "reads_by_entry": {str(count): entries[count] for count in sorted(entries)},
        "overwritten_unread": usage.reads_of_gone[0],
        "left_unread": replay.left()[0],
        "buffer_bytes": buffer_bytes,
    }


def draw_staleness(entries: Sequence[dict[str, Any] | None], picture: Path) -> None:
    """Histograms of the age of what each stage read, and of how often a batch was read."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(j, entry) for j, entry in enumerate(entries) if entry and entry["reads"]]
    if not shown:
        return
    figure = Figure(figsize=(2.6 * len(shown) + 1, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, (j, entry) in enumerate(shown):
        for row, key, label in (
            (0, "ages", "outputs of the stage below since"),
            (1, "reads_by_entry", "reads of a batch"),
        ):
            counts = {int(value): count for value, count in entry[key].items()}
            whole = sum(counts.values())
            axes[row][column].bar(list(counts), [count / whole for count in counts.values()])
            axes[row][column].set_xlabel(label)
        axes[0][column].set_title(f"stage {j}, mean age {entry['mean_age']:.1f}")
    axes[0][0].set_ylabel("share of reads")
    axes[1][0].set_ylabel("share of batches")
    figure.savefig(picture, dpi=110)
