"""The interface of runners, which train and evaluate the stages of one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from dglpipe.methods.events import Event
from dglpipe.pipeline.stage import Stage


class Runner(Protocol):
    """Trains and evaluates the stages of one process."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of the process, in order."""
        ...

    @property
    def step(self) -> int:
        """The training step in progress, for error messages; 0 before the first."""
        ...

    @property
    def done_by_stage(self) -> Mapping[int, int]:
        """Stage -> steps before the run was resumed, for stages that differ from
        `RunContext.done`."""
        ...

    @property
    def decoders(self) -> int | None:
        """Number of processes that decode images for this process; None: no such processes."""
        ...

    def run(self) -> Iterator[Event]:
        """Trains and evaluates to the end of the run.

        Yields after every update, after every evaluation, and when the probe batch has passed.
        """
        ...

    def check(self) -> None:
        """Raises LinkError if a message differs from the batch schedule; waits for the device."""

    def close(self) -> None:
        """Stops loading of data; called after the last event."""

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any] | None:
        """Further state for a checkpoint by stage, besides weights, optimizer and loss scaler:
        tensors, numbers, dicts and lists. None: no further state."""

    def report(self, stage: Stage) -> Mapping[str, Any]:
        """Further entries of `stage` in the final report."""
        ...
