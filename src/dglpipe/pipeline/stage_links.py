"""Links of stages that can be started again, each a process group of two ranks made in the store.

The processes of a stage are numbered: its first process has generation 0, the next has 1. Two
neighbours meet under a key with both generations, so a new process never meets an old connection:

    link/1-2/0-0   the first processes of stages 1 and 2
    link/1-2/1-0   stage 1 has been started again
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from dglpipe.errors import PeerLostError, RejoinError
from dglpipe.pipeline.p2p import PairGroup
from dglpipe.pipeline.transport import Transport

POLL_S = 0.02
"""Seconds between two looks at the store."""
NO_PROCESS = -1
"""In place of a generation: the stage has no process."""
CONNECT_S = 30.0
"""Maximum time in seconds to connect to a neighbour that has come to the meeting."""

Relink = Callable[[PeerLostError, float], Transport]
"""Connects to the next process of a lost neighbour. Arguments: the error of the failed transfer,
and the time when it was issued, in seconds of `time.monotonic`. The error is raised again if the
transfer had lasted `timeout_s`: the neighbour runs, but did not answer."""


class StageLinks:
    """The links of one stage. Several threads may use the object, each for another neighbour.

    Args:
        stage: j.
        generation: number of processes that the stage has had before.
        store: shared by all stages.
        timeout_s: maximum time of a transfer, and until a neighbour is started again, in seconds.
    """

    def __init__(self, stage: int, generation: int, store: Store, timeout_s: float) -> None:
        self.generation = generation
        self._stage = stage
        self._store = store
        self._timeout_s = timeout_s
        self._met: dict[int, int] = {}
        store.delete_key(_finished(stage))
        store.set(_generation(stage), str(generation))

    def meet(self, other: int) -> PairGroup:
        """Connects to the process of stage `other` that this process has not met yet.

        Raises:
            PeerLostError: there is no such process within `timeout_s`.
            RejoinError: stage `other` has sent or received its last message.
        """
        store = self._store.clone()
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if store.check([_finished(other)]):
                raise RejoinError(f"stage {other} has finished, and stage {self._stage} has not")
            there = store.check([_generation(other)])
            theirs = int(store.get(_generation(other))) if there else NO_PROCESS
            if theirs > self._met.get(other, NO_PROCESS):
                ends = sorted([(self._stage, self.generation), (other, theirs)])
                (lower, first), (upper, second) = ends
                key = f"link/{lower}-{upper}/{first}-{second}"
                store.set(f"{key}/{self._stage}", "")
                if store.check([f"{key}/{other}"]):
                    self._met[other] = theirs
                    group = self._open(PrefixStore(key, store), int(self._stage == upper))
                    if group is not None:
                        return group
                    deadline = time.monotonic() + self._timeout_s
            time.sleep(POLL_S)
        raise PeerLostError(f"stage {other} was not started within {self._timeout_s:g} s")

    def _open(self, store: Store, rank: int) -> PairGroup | None:
        """A group with a neighbour that is there; None if the neighbour has ended since."""
        limit = timedelta(seconds=min(CONNECT_S, self._timeout_s))
        try:
            group: Any = dist.ProcessGroupGloo(store, rank, 2, limit)
        except RuntimeError:
            return None
        group.set_timeout(timedelta(seconds=self._timeout_s))
        pair: PairGroup = group
        return pair

    def meet_again(self, other: int, error: PeerLostError, since: float) -> PairGroup:
        """As `meet`, after a transfer that was issued at `since` has failed with `error`.

        Raises:
            PeerLostError: `error`, if the neighbour runs and did not answer within `timeout_s`.
        """
        if time.monotonic() - since >= self._timeout_s:
            raise error
        return self.meet(other)

    def finish(self) -> None:
        """Announces that the stage has sent and received its last message."""
        self._store.set(_finished(self._stage), "")


def withdraw_process(store: Store, stage: int) -> None:
    """Withdraws a process that has ended, so that no neighbour tries to meet it.

    The key stays: it could be deleted between two requests of a neighbour, to check and to read it.
    """
    store.set(_generation(stage), str(NO_PROCESS))


def _generation(stage: int) -> str:
    return f"generation/{stage}"


def _finished(stage: int) -> str:
    return f"finished/{stage}"
