"""Scalars of every stage for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dglpipe.metrics import Line


class TensorBoard:
    """Writes event files; the library is loaded with the first line, off the main thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def line(self, line: Line) -> None:
        """One point in each curve that the line has a value for."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._path))
        where = line.stage if isinstance(line.stage, str) else f"stage_{line.stage}"
        for name in ("loss", "accuracy", "learning_rate", "samples_per_second"):
            value = getattr(line, name)
            if value is not None:
                self._writer.add_scalar(f"{line.kind}/{name}/{where}", value, line.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
