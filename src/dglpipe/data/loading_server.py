"""The server process that forks the loading processes; see `loading_processes`."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import socket
import struct
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from dglpipe.data.dataset import Request
from dglpipe.errors import DataError
from dglpipe.host import end_with_parent

JOB = struct.Struct("<?qq")
"""A request: training, epoch, rows B. The file descriptor of its slot is sent with it."""
ANSWER = struct.Struct("<cq")
"""An answer: its kind, one of the next three, and the bytes of the text that follows."""
DONE, DATA_ERROR, FAILED = b"+", b"d", b"f"
"""The batch is in its slot; an image cannot be decoded; any other error, with its traceback."""
_INDEX_BYTES = 8
_POLL_S = 0.1
"""Seconds after which the server notices that a loading process has ended."""

Shape = tuple[int, int, int]
"""(H,W,C)"""


class Decodes(Protocol):
    """Decodes batches; every loading process has a copy."""

    @property
    def shape(self) -> Shape:
        """(H,W,C) of an image."""
        ...

    def decode(self, request: Request) -> Tensor:
        """Images (B,H,W,C) uint8.

        Raises:
            DataError: an image cannot be decoded.
        """
        ...


def slot_bytes(rows: int, shape: Shape) -> int:
    """Bytes of a slot: indices (rows,) int64, then images (rows,H,W,C) uint8."""
    height, width, channels = shape
    return rows * (_INDEX_BYTES + height * width * channels)


def slot_indices(slot: mmap.mmap, rows: int) -> Tensor:
    """The indices (rows,) int64 in a slot."""
    return torch.frombuffer(slot, dtype=torch.int64, count=rows)


def slot_images(slot: mmap.mmap, rows: int, shape: Shape) -> Tensor:
    """The images (rows,H,W,C) uint8 in a slot."""
    offset = rows * _INDEX_BYTES
    count = slot_bytes(rows, shape) - offset
    return torch.frombuffer(slot, dtype=torch.uint8, count=count, offset=offset).view(rows, *shape)


def serve(decoder: Decodes, folder: str, sockets: Sequence[socket.socket]) -> NoReturn:
    """Runs one loading process per socket, until one of them ends or the first socket is closed;
    then exits.

    The kernel closes the sockets of a training process that is killed.

    Args:
        folder: working directory.
        sockets: connections to the training process: the first reports the exit code of a process
            that has ended; each of the others has the requests of one process.
    """
    os.chdir(folder)  # a spawned process begins in the first working directory of its parent
    torch.set_num_threads(1)
    control, *channels = sockets
    running = {_fork(decoder, channel, sockets) for channel in channels}
    for channel in channels:
        channel.close()
    while not wait([control], _POLL_S):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            running.discard(pid)
            with contextlib.suppress(OSError):
                control.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            break
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    for pid in running:
        os.waitpid(pid, 0)
    os._exit(0)  # interpreter shutdown takes tenths of a second, and there is nothing to clean up


def _fork(decoder: Decodes, channel: socket.socket, sockets: Sequence[socket.socket]) -> int:
    """Starts a loading process and returns its process id."""
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        for other in sockets:
            if other is not channel:
                other.close()
        _load(decoder, channel, server)
    return pid


def _load(decoder: Decodes, channel: socket.socket, server: int) -> NoReturn:
    """Answers requests until the other end of `channel` is closed; then exits."""
    status = 1
    try:
        end_with_parent(server)
        channel.sendall(ANSWER.pack(DONE, 0))
        while job := _next_job(channel):
            kind, text = _answer(decoder, *job)
            content = text.encode(errors="surrogateescape")
            channel.sendall(ANSWER.pack(kind, len(content)) + content)
        status = 0
    except ConnectionError:
        status = 0  # the training process has ended
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _next_job(channel: socket.socket) -> tuple[bool, int, int, int | None] | None:
    """Training, epoch, rows and file descriptor of the slot; None: the other end is closed."""
    header, descriptors, _, _ = socket.recv_fds(channel, JOB.size, 1)
    if not header:
        return None
    return *JOB.unpack(header), descriptors[0] if descriptors else None


def _answer(
    decoder: Decodes, training: bool, epoch: int, rows: int, descriptor: int | None
) -> tuple[bytes, str]:
    """Decodes a batch into its slot; returns the kind of the answer, and its text."""
    try:
        if descriptor is None:  # the kernel drops a descriptor above the limit
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        slot = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        request = Request(training, epoch, slot_indices(slot, rows))
        slot_images(slot, rows, decoder.shape).copy_(decoder.decode(request))
    except DataError as error:
        return DATA_ERROR, str(error)
    except BaseException:  # also SystemExit, from code of the user
        return FAILED, traceback.format_exc()
    return DONE, ""
