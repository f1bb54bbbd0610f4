"""The store that the processes of a run share, and how they find it."""

from __future__ import annotations

import socket
import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore as PrefixStore
from torch.distributed.distributed_c10d import Store as Store
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from dglpipe.errors import PeerLostError

LOOPBACK = "127.0.0.1"


def host_store() -> tuple[Store, int]:
    """The store of a run on one machine, and its port. It listens on 127.0.0.1 only.

    The socket is made here, because a `TCPStore` that makes its own listens on all addresses.
    Numbers instead of `localhost`, because a machine may resolve no name.
    """
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, port


def join_store(port: int, timeout_s: float) -> Store:
    """Connects to the store that `host_store` of another process has made."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False, timeout=timeout)


def join_attempt(store: Store, rank: int, size: int, timeout_s: float) -> Store:
    """A part of `store` that belongs to this attempt alone.

    A launcher that starts all workers again keeps the store, with the addresses of the processes
    that have ended. Its own count of restarts does not help: it differs between machines. So rank
    0 makes a new name and answers every rank that asks under a token of its own.

    Raises:
        PeerLostError: not all ranks have arrived within `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    if rank:
        token = uuid.uuid4().hex
        store.set(_hello(rank), token)
        try:
            prefix = store.get(f"answer/{token}").decode()
        except RuntimeError as error:
            raise PeerLostError(f"no answer from rank 0: {error}") from error
        store.set(f"{prefix}/here/{rank}", "")
        return PrefixStore(prefix, store)
    prefix = uuid.uuid4().hex
    here = [f"{prefix}/here/{other}" for other in range(1, size)]
    answered = set[str]()
    while here and not store.check(here):
        for other in range(1, size):
            # The token may be that of a process that has ended, and a new one may take its place at
            # any time: the key stays.
            asked = store.get(_hello(other)).decode() if store.check([_hello(other)]) else None
            if asked is not None and asked not in answered:
                store.set(f"answer/{asked}", prefix)
                answered.add(asked)
        if time.monotonic() > end:
            raise PeerLostError(f"not all processes have started within {timeout_s:g} s")
        time.sleep(0.01)
    return PrefixStore(prefix, store)


def _hello(rank: int) -> str:
    return f"hello/{rank}"


def rendezvous(
    timeout_s: float, init_method: str = "env://", rank: int = -1, size: int = -1
) -> Store:
    """Connects to the store of the run. Call once per process.

    Args:
        timeout_s: timeout of operations on the store, in seconds.
        init_method: `env://` under a launcher, or `file://PATH` with `rank` and `size`.
    """
    store: Store
    store, _, _ = next(torch_rendezvous(init_method, rank, size))
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
