"""Processes of a benchmark that runs parts of dglpipe itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import start_processes

from dglpipe.config import LinkConfig
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stores import rendezvous
from dglpipe.pipeline.topology import Layout

CPU = Device(torch.device("cpu"), "gloo")
TIMEOUT_S = 120
DRAIN_S = 1.0


def in_processes(
    function: Callable[..., Any], count: int, *arguments: Any, start_method: str = "fork"
) -> list[Any]:
    """Results of `function(rank, folder, *arguments)` in `count` processes, by rank.

    Args:
        function: `folder` is an empty folder that the processes share, for `connect`.

    Raises:
        ProcessRaisedException: a process failed; the others are terminated.
    """
    results: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        queue = mp.get_context(start_method).SimpleQueue()
        context = start_processes(  # type: ignore[no-untyped-call]
            _call, (function, folder, queue, arguments), count, False, start_method=start_method
        )
        finished = False
        while not finished:
            # Emptied now and then: a process waits if the pipe is full.
            finished = context.join(DRAIN_S)
            while not queue.empty():
                rank, result = queue.get()
                results[rank] = result
    return [results[rank] for rank in range(count)]


def _call(
    rank: int, function: Callable[..., Any], folder: str, queue: Any, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    queue.put((rank, function(rank, folder, *arguments)))


def connect(rank: int, folder: str, layout: Layout, link: LinkConfig | None = None) -> ProcessGroup:
    """Connects the processes of `in_processes`."""
    store = rendezvous(TIMEOUT_S, f"file://{folder}/store", rank, layout.world_size)
    return ProcessGroup.connect(layout.at(rank), CPU, store, TIMEOUT_S, link=link)
