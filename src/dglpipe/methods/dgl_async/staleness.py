"""Statistics of the replay buffers: ages of the batches, reads per batch, dropped batches."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dglpipe.files import writing
from dglpipe.methods.dgl_async.replay import InOrder, Replay


def ages(
    made: Sequence[int], read: Sequence[int], numbers: Sequence[int], earlier: int = 0
) -> Counter[int]:
    """Age -> number of reads. Age: outputs of the stage below since the read output, whether
    received or dropped.

    Args:
        made: time of each output of the stage below, in ascending order.
        read: time of each read, by the same clock.
        numbers: number of the output of each read, from 1.
        earlier: number of outputs of earlier processes of the stage, whose times are unknown; their
            reads are not counted.
    """
    pairs = [pair for pair in zip(read, numbers, strict=True) if pair[1] > earlier]
    # Clocks of two machines differ, so a read may seem to precede its output.
    return Counter(max(0, bisect_right(made, when) + earlier - number) for when, number in pairs)


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
        replay: the buffer of the stage; None: the stage reads the data set.
        updates: number of updates of the stage.
        outputs: number of outputs, whether sent or dropped.
        dropped: number of outputs that were replaced before they were sent.
        waits: number of times that the buffer had no batch to read.
        buffer_bytes: maximum size of the batches in the buffer.
    """
    mine = {"updates": updates, "outputs": outputs, "dropped": dropped, "waits": waits}
    if replay is None:
        return {**mine, "reads": None}
    usage = replay.usage
    total = sum(age * count for age, count in usage.ages.items())
    aged = sum(usage.ages.values())
    entries = replay.reads_by_entry()
    return {
        **mine,
        "reads": usage.reads,
        "repeats": usage.repeats,
        "handed_on": usage.handed_on,
        "mean_age": total / aged if aged else None,
        "ages": {str(age): usage.ages[age] for age in sorted(usage.ages)},
        "received": usage.written,
        "reads_by_entry": {str(count): entries[count] for count in sorted(entries)},
        "overwritten_unread": usage.reads_of_gone[0],
        "left_unread": replay.left()[0],
        "buffer_bytes": buffer_bytes,
    }


def draw_staleness(entries: Sequence[dict[str, Any] | None], picture: Path) -> None:
    """Draws histograms of the ages of read batches and of the reads per batch, by stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A stage may have no ages: it reads images, or its reads were of an earlier process below.
    shown = [(j, entry) for j, entry in enumerate(entries) if entry and entry.get("ages")]
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
    with writing(picture):
        figure.savefig(picture, dpi=110)
