"""While a run trains, nothing listens beyond loopback."""

from __future__ import annotations

import os
import signal
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from harness.commands import DGLPIPE
from harness.configs import in_test_all, small
from harness.paths import ROOT
from harness.processes import descendants
from harness.sockets import beyond_loopback, listeners, parse_address

LAUNCH = ROOT / "launch"
LONG = ("epochs=100000", "evaluate.every=0", "log_every=2")


def end(run):
    os.kill(run.pid, signal.SIGTERM)
    run.wait()
    run.assert_nobody_left()


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (("pipeline.stages=2",), 2),
        in_test_all(("pipeline.stages=2", "pipeline.replicas=2"), 4),
        in_test_all(("pipeline.stages=2", "method=dgl_async"), 2),
    ],
)
def test_a_run_listens_on_loopback_alone(layout, processes, start, run_dir):
    """The launcher, its workers, and every process that they start."""
    run = start("train", *small(*LONG, *layout, f"run_dir={run_dir}"))
    workers = run.wait_for_step(run_dir, 4)
    pids = {run.pid, *descendants(run.pid), *run.alive()}
    assert len(workers) == processes
    assert {run.pid, *workers} <= pids
    found = listeners(pids)
    # A run without any listening socket would say that this test reads the wrong processes.
    assert {one.pid for one in found} & pids
    end(run)
    assert beyond_loopback(found) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("method=dgl_async", "on_failure=restart_stage", "checkpoint.every=9")], ids=str
)
def test_a_spawned_run_listens_on_loopback_alone(more, start, run_dir):
    """As users start it; IPv6 is not switched off."""
    run = start(*DGLPIPE, "train", *small(*LONG, *more, f"run_dir={run_dir}"))
    run.wait_for_step(run_dir, 4)
    found = listeners({run.pid, *descendants(run.pid), *run.alive()})
    end(run)
    assert found
    assert beyond_loopback(found) == []


@pytest.mark.slow
def test_torchrun_on_one_machine_opens_one_port(start, run_dir):
    """The store of the agent, which no flag binds to one interface; see SECURITY.md."""
    words = (str(LAUNCH / "torchrun_one_node.sh"), "2", *small(*LONG, f"run_dir={run_dir}"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).parent / "torchrun")
    run = start(*words, TORCHRUN=program, PORT=str(port))
    workers = run.wait_for_step(run_dir, 4, 100)
    found = beyond_loopback(listeners({run.pid, *descendants(run.pid)}))
    assert listeners(workers)
    end(run)
    assert {(one.pid, one.port) for one in found} == {(run.pid, port)}


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("127.3.2.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)],
)
def test_listening_sockets_are_found(host, is_open):
    """Otherwise the tests above could not fail."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no address {host}: {error}")
    with server:
        (own,) = [one for one in listeners([os.getpid()]) if one.port == server.getsockname()[1]]
        assert (own.pid, own.address) == (os.getpid(), ip_address(host))
        assert bool(beyond_loopback([own])) == is_open


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("0000000000000000FFFF00000100007F", "::ffff:127.0.0.1"),
        ("00000000000000000000000001000000", "::1"),
    ],
)
def test_addresses_of_proc(text, address):
    assert parse_address(text) == ip_address(address)
