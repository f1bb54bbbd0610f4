"""Metrics as scalars for TensorBoard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dglpipe.files import writing
from dglpipe.monitoring.metrics import AnyLine

PLACE = ("kind", "epoch", "step", "stage")
"""Fields of a line that are no curves."""


class TensorBoard:
    """A sink that writes event files to `path`."""

    def __init__(self, path: Path) -> None:
        # The import takes a second. It happens here, in one process before the first step.
        from torch.utils.tensorboard import SummaryWriter

        self._path = path
        with writing(path):
            self._writer: Any = SummaryWriter(str(path))

    def line(self, line: AnyLine) -> None:
        """Adds a point to the curve of each value that is not None."""
        stage = line.stage if isinstance(line.stage, str) else f"stage_{line.stage}"
        for name, value in asdict(line).items():
            if name not in PLACE and value is not None:
                with writing(self._path):
                    self._writer.add_scalar(f"{line.kind}/{name}/{stage}", value, line.step)

    def close(self) -> None:
        """Writes the remaining points and closes the file."""
        with writing(self._path):
            self._writer.close()
