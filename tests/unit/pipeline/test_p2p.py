"""Transfers between two ranks: errors of the transport name the peer that was lost."""

from __future__ import annotations

import pytest
import torch

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.p2p import PairTransport, first_line, warm_up

PEER = "rank 1 (stage 1)"
CLOSED = "Connection closed by peer [127.0.0.1]:5\nException raised from ...\nframe #0: ..."


class Group:
    """Stands in for a process group of two ranks.

    Args:
        fails: `issue` or `wait`: where an operation raises `error`.
    """

    def __init__(self, fails=None, error=None):
        self.calls = []
        self._fails = fails
        self._error = error or RuntimeError(CLOSED)

    def send(self, tensors, rank, tag):
        return self._operate("send", tensors, rank, tag)

    def recv(self, tensors, rank, tag):
        return self._operate("recv", tensors, rank, tag)

    def _operate(self, name, tensors, rank, tag):
        self.calls.append((name, tensors, rank, tag))
        if self._fails == "issue":
            raise self._error
        return self

    def wait(self):
        self.calls.append(("wait",))
        if self._fails == "wait":
            raise self._error


def make_transport(group, place=1):
    return PairTransport(group, place, PEER)


@pytest.mark.parametrize(("operation", "call"), [("isend", "send"), ("irecv", "recv")])
def test_a_transfer_is_one_call_of_the_group(operation, call):
    group, tensor = Group(), torch.zeros(3)
    work = getattr(make_transport(group), operation)(tensor)
    ((name, tensors, rank, tag),) = group.calls
    assert (name, rank, tag) == (call, 1, 0)
    assert tensors[0] is tensor
    work.wait()
    assert group.calls[-1] == ("wait",)


@pytest.mark.parametrize("operation", ["isend", "irecv"])
@pytest.mark.parametrize("fails", ["issue", "wait"])
def test_a_lost_peer_is_named_and_the_first_line_of_the_cause_kept(operation, fails):
    transport = make_transport(Group(fails))
    with pytest.raises(PeerLostError) as caught:
        getattr(transport, operation)(torch.zeros(1)).wait()
    assert str(caught.value) == f"lost {PEER}: Connection closed by peer [127.0.0.1]:5"
    assert str(caught.value.__cause__) == CLOSED


@pytest.mark.parametrize("fails", ["issue", "wait"])
def test_other_errors_stay_what_they_are(fails):
    transport = make_transport(Group(fails, ValueError("a mistake of the program")))
    with pytest.raises(ValueError, match="a mistake of the program"):
        transport.isend(torch.zeros(1)).wait()


def test_copies_cast_and_fills_write_one_word():
    transport = make_transport(Group())
    target = torch.zeros(2, dtype=torch.bfloat16)
    transport.copy(target, torch.tensor([1.0, 2.0]))
    assert target.tolist() == [1.0, 2.0]
    words = torch.zeros(3, dtype=torch.int64)
    transport.fill(words[1], 7)
    assert words.tolist() == [0, 7, 0]


@pytest.mark.parametrize(("sends", "call"), [(True, "send"), (False, "recv")])
def test_a_link_is_warmed_up_by_one_byte(sends, call):
    group = Group()
    warm_up(make_transport(group), sends, Device(torch.device("cpu"), "gloo"))
    (name, tensors, _, _), waited = group.calls
    assert (name, waited) == (call, ("wait",))
    assert tensors[0].nbytes == 1


def test_an_error_without_a_message_is_named_by_its_type():
    assert first_line(RuntimeError()) == "RuntimeError"
