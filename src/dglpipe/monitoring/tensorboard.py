"""Scalars of every stage for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dglpipe.monitoring.metrics import Line


class TensorBoard:
    """Writes event files."""

    def __init__(self, path: Path) -> None:
        # Loading the library takes a second: before the first step, and in one process only.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(path))

    def line(self, line: Line) -> None:
        """One point in each curve that the line has a value for."""
        where = line.stage if isinstance(line.stage, str) else f"stage_{line.stage}"
        for name in ("loss", "accuracy", "learning_rate", "samples_per_second"):
            value = getattr(line, name)
            if value is not None:
                self._writer.add_scalar(f"{line.kind}/{name}/{where}", value, line.step)

    def close(self) -> None:
        self._writer.close()
