"""Processes that decode batches ahead of training.

```text
training process ── spawn ──▶ server ── fork ──▶ loading processes 0 .. n - 1
      │ │                        │                     │
      │ └──────── control ───────┘                     │
      └──────────── one channel per process ───────────┘    requests ──▶   ◀── answers
```

The server imports the libraries once; see `loading_server`. A batch is written into a slot: an
unnamed file in `SHARED` that the training process allocates and that both processes map. Request i
goes to process i mod n and to slot i mod 2n.

DataLoader of torch is not used. It waits without end if a batch does not fit into shared memory or
if a process is stopped, and its semaphores outlive a process that exits early. Here, the training
process allocates the memory itself, every wait has a deadline, and all processes end with the
training process.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

from torch import Tensor

from dglpipe.data.dataset import Request
from dglpipe.data.loading_server import (
    ANSWER,
    DATA_ERROR,
    FAILED,
    JOB,
    Decodes,
    serve,
    slot_bytes,
    slot_images,
    slot_indices,
)
from dglpipe.errors import DataError, LoadingError

SHARED = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
"""Folder of the shared memory."""
_PREFETCH = 2
"""Batches that each process prepares ahead."""
_END_S = 2.0
"""Seconds in which the server ends its processes; then it is killed."""
_GROUP_SIGNALS = {
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
"""Signals that a terminal or a cluster sends to all processes of a run. Loading processes block
them: they end with the training process, which decides what a signal means."""

_NO_MEMORY = (signal.SIGKILL, signal.SIGBUS)
"""Signals by which the kernel ends a process that gets no memory."""


class LoadingProcesses:
    """Decodes batches in processes, which run within the context of this object.

    Args:
        count: number of processes.
        timeout_s: seconds in which the processes have to start. A batch has to arrive within half
            of that time: other processes of the run wait for this process for `timeout_s`, and
            must not report it as lost before it has reported the cause.
    """

    def __init__(self, decoder: Decodes, count: int, timeout_s: float) -> None:
        self._decoder = decoder
        self._count = count
        self._start_limit = _Limit(timeout_s, "timeout_s")
        self._batch_limit = _Limit(timeout_s / 2, "half of timeout_s")
        self._slots: list[_Slot | None] = [None] * (_PREFETCH * count)

    def __enter__(self) -> LoadingProcesses:
        """Starts the processes.

        Raises:
            OSError: they cannot be started.
        """
        pairs = [socket.socketpair() for _ in range(self._count + 1)]
        self._control, *self._channels = own = [one for one, _ in pairs]
        others = [other for _, other in pairs]
        arguments = (self._decoder, os.getcwd(), others)  # noqa: PTH109
        context = multiprocessing.get_context("spawn")
        self._server = context.Process(target=serve, args=arguments, daemon=True)
        # Also called when this process exits, before multiprocessing waits for the server.
        self._end = Finalize(self, _end, (self._server, own), exitpriority=0)
        try:
            _start(self._server)
            for other in others:
                other.close()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes."""
        self._end()

    def load(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Tensor]]:
        """Yields each request with its images (B,H,W,C) uint8, which are valid until the next one.

        To be called once.

        Raises:
            DataError: an image cannot be decoded; raised instead of the batch with the image.
            LoadingError: shared memory is full; a process ended, failed or is too slow.
        """
        numbered = enumerate(requests)
        sent: deque[tuple[int, Request]] = deque()
        self._fill(sent, numbered)
        for channel in self._channels:
            self._wait_for_answer(channel, self._start_limit)
        while sent:
            number, request = sent.popleft()
            self._wait_for_answer(self._channels[number % self._count], self._batch_limit)
            slot = self._slots[number % len(self._slots)]
            assert slot is not None
            yield request, slot_images(slot.memory, len(request.indices), self._decoder.shape)
            self._fill(sent, numbered)

    def _fill(
        self, sent: deque[tuple[int, Request]], numbered: Iterator[tuple[int, Request]]
    ) -> None:
        """Sends requests until each slot has one."""
        for number, request in itertools.islice(numbered, len(self._slots) - len(sent)):
            self._send(number, request)
            sent.append((number, request))

    def _send(self, number: int, request: Request) -> None:
        """Writes the indices of `request` into a slot and sends the slot to a process."""
        slot = self._slot(number % len(self._slots), len(request.indices))
        slot_indices(slot.memory, len(request.indices)).copy_(request.indices)
        channel = self._channels[number % self._count]
        channel.settimeout(self._batch_limit.seconds)
        header = JOB.pack(request.training, request.epoch, len(request.indices))
        try:
            socket.send_fds(channel, [header], [slot.descriptor])
        except TimeoutError:
            raise self._late(self._batch_limit) from None
        except OSError:
            raise self._ended() from None

    def _slot(self, index: int, rows: int) -> _Slot:
        """Slot `index` with room for `rows` images."""
        size = slot_bytes(rows, self._decoder.shape)
        slot = self._slots[index]
        if slot is None or slot.size < size:
            try:
                slot = self._slots[index] = _Slot(size)
            except OSError as error:
                raise self._error(
                    f"cannot allocate {_mib(size)} in {SHARED} for a batch of {rows} images: "
                    f"{error.strerror}; {len(self._slots)} such batches are loaded ahead"
                ) from None
        return slot

    def _wait_for_answer(self, channel: socket.socket, limit: _Limit) -> None:
        ready = wait([channel, self._control], limit.seconds)
        if not ready:
            raise self._late(limit)
        if self._control in ready:
            raise self._ended()
        channel.settimeout(limit.seconds)
        try:
            kind, size = ANSWER.unpack(_receive(channel, ANSWER.size))
            text = _receive(channel, size).decode(errors="surrogateescape")
        except TimeoutError:
            raise self._late(limit) from None
        except (OSError, EOFError):
            raise self._ended() from None
        if kind == DATA_ERROR:
            raise DataError(text)
        if kind == FAILED:
            last = text.rstrip().rpartition("\n")[2]
            raise self._error(f"a loading process failed: {last}") from _LoaderError(text)

    def _late(self, limit: _Limit) -> LoadingError:
        return self._error(
            f"a loading process has not answered for {limit.seconds:g} s ({limit.name}): it hangs, "
            "or reading and decoding take longer"
        )

    def _ended(self) -> LoadingError:
        """The error for a loading process, or the server, that has ended."""
        self._control.settimeout(_END_S)
        try:
            code: int | None = int(self._control.recv(16))
        except (OSError, ValueError):  # the server has ended
            self._server.join(_END_S)
            code = self._server.exitcode
        how = f"exited with status {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if -code in _NO_MEMORY:
                how += ", as when memory runs out"
        return self._error(f"a loading process {how}")

    def _error(self, cause: str) -> LoadingError:
        free = _mib(shutil.disk_usage(SHARED).free)
        return LoadingError(
            f"data.workers={self._count}: {cause}. {SHARED} has {free} free. Give a smaller "
            "batch_size or data.workers, or data.workers=0, which decodes in the training process "
            f"without shared memory; or enlarge {SHARED}: `mount -o remount,size=8G {SHARED}`, "
            "in a container `docker run --shm-size=8g`"
        )


class _Limit:
    """A deadline in seconds, and the setting from which it follows."""

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds = seconds
        self.name = name


class _LoaderError(Exception):
    """The traceback of a loading process, as the cause of a LoadingError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Slot:
    """Memory for one batch that two processes share. The kernel frees it with its last user.

    Raises:
        OSError: there is no memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._file = tempfile.TemporaryFile(dir=SHARED)  # noqa: SIM115
        self.descriptor = self._file.fileno()
        if hasattr(os, "posix_fallocate"):
            # A file that is only truncated gets memory when it is written, and SIGBUS without.
            os.posix_fallocate(self.descriptor, 0, size)
        else:
            os.truncate(self.descriptor, size)
        self.memory = mmap.mmap(self.descriptor, size)


def _start(server: BaseProcess) -> None:
    """Starts the server, which inherits the blocked signals."""
    resource_tracker.ensure_running()  # unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        server.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(server: BaseProcess, sockets: Sequence[socket.socket]) -> None:
    """Closes the sockets, on which the server ends its processes, and waits for the server."""
    for one in sockets:
        one.close()
    if server.pid is not None:
        server.join(_END_S)
        server.kill()
        server.join()


def _receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes.

    Raises:
        EOFError: the other end is closed.
    """
    content = bytearray()
    while len(content) < size:
        part = channel.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
