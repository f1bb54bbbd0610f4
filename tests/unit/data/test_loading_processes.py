"""Loading processes: same batches, and every kind of end, without waiting forever."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
import time

import pytest
import torch

from dglpipe.data import Request, loading_processes
from dglpipe.data.loading_processes import SHARED, LoadingProcesses
from dglpipe.errors import DataError, LoadingError
from harness.configs import in_test_all
from harness.decoders import TROUBLE, NumberDecoder
from harness.processes import children, have_ended
from harness.worlds import fork_server

TIMEOUT_S = 60.0
SHORT_S = 4.0
"""The processes have to start in this time; a batch has to arrive in half of it."""
ADVICE = f"{SHARED} has .* MiB free. Give a smaller batch_size or data.workers"


@pytest.fixture
def quick_start(monkeypatch):
    """The server is forked: a spawned process takes seconds to import torch."""
    context = fork_server()
    monkeypatch.setattr(loading_processes.multiprocessing, "get_context", lambda _: context)


quick = pytest.mark.usefixtures("quick_start")


def requests(*batches, training=True, epoch=1):
    return [Request(training, epoch, torch.tensor(batch)) for batch in batches]


@quick
@pytest.mark.parametrize("count", [in_test_all(1), 3])
def test_batches_arrive_in_order(count):
    """Also batches that are larger than the ones before, and fewer batches than processes."""
    asked = requests([1, 2], [3], [4, 5, 6, 7, 8, 9], epoch=2) + requests([7, 1], training=False)
    for wanted in (asked, asked * 5, asked[:1], []):
        with LoadingProcesses(NumberDecoder(), count, TIMEOUT_S) as processes:
            loaded = [(request, images.clone()) for request, images in processes.load(wanted)]
        assert [request for request, _ in loaded] == wanted
        for request, images in loaded:
            assert torch.equal(images, NumberDecoder().decode(request))


@quick
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit", "exited with status 3"),
        in_test_all("exit 0", "exited with status 0"),
        ("kill", "was ended by SIGKILL, as when memory runs out"),
        ("memory", "failed: MemoryError"),
        in_test_all("raise", "failed: KeyError: 'no such key'"),
        ("sys.exit", "failed: SystemExit: enough"),
        ("stop", r"has not answered for 2 s \(half of timeout_s\)"),
        in_test_all("hang", r"has not answered for 2 s \(half of timeout_s\)"),
    ],
)
def test_a_lost_process_ends_loading(how, cause):
    """No process is left. The loss may be noticed before the first batch is read."""
    asked = requests([1], [2], [TROUBLE], [3], [4])
    seconds = SHORT_S if how in ("stop", "hang") else TIMEOUT_S
    with (
        pytest.raises(LoadingError, match=rf"^data.workers=2: a loading process {cause}.*{ADVICE}"),
        LoadingProcesses(NumberDecoder(how), 2, seconds) as processes,
    ):
        server = processes._server.pid
        pids = [server, *children(server)]
        began = time.monotonic()
        list(processes.load(asked))
    assert time.monotonic() - began < 10
    assert have_ended(pids)


@quick
def test_the_traceback_of_a_process_is_the_cause():
    with (
        pytest.raises(LoadingError) as caught,
        LoadingProcesses(NumberDecoder("raise"), 1, TIMEOUT_S) as processes,
    ):
        list(processes.load(requests([TROUBLE])))
    assert "decoders.py" in str(caught.value.__cause__)
    assert "KeyError: 'no such key'" in str(caught.value.__cause__)


@quick
def test_a_data_error_arrives_instead_of_its_batch():
    with LoadingProcesses(NumberDecoder("refuse"), 2, TIMEOUT_S) as processes:
        batches = processes.load(requests([1], [2], [TROUBLE]))
        assert len([next(batches), next(batches)]) == 2
        with pytest.raises(DataError, match=r"^a.jpg: is not an image$"):
            next(batches)


@quick
def test_a_killed_server_ends_loading():
    with LoadingProcesses(NumberDecoder(), 2, TIMEOUT_S) as processes:
        batches = processes.load(requests(*[[1]] * 9))
        next(batches)
        server = processes._server.pid
        pids = [server, *children(server)]
        assert len(pids) == 3
        os.kill(server, signal.SIGKILL)
        assert have_ended([server])
        with pytest.raises(LoadingError, match="a loading process was ended by SIGKILL"):
            list(batches)
    assert have_ended(pids)


@pytest.mark.slow
def test_signals_to_the_whole_run_do_not_end_loading(tmp_path, monkeypatch):
    """Ctrl-C, a closed terminal, and the signals of a cluster: the training process decides.

    The server is spawned, as in a run; a long TMPDIR leaves no room for the name of a socket.
    """
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with LoadingProcesses(NumberDecoder(), 1, 60.0) as processes:
        batches = processes.load(requests(*[[1]] * 9))
        next(batches)
        server = processes._server.pid
        for pid in (server, *children(server)):
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        assert len(list(batches)) == 8
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert list(folder.iterdir()) == []


def _load_and_wait(how, sender):
    with LoadingProcesses(NumberDecoder(how), 2, 1000.0) as processes:
        batches = processes.load(requests([1], [TROUBLE]))
        next(batches)
        server = processes._server.pid
        sender.send([server, *children(server)])
        list(batches)


@pytest.mark.parametrize("how", [in_test_all("stop"), in_test_all("hang")])
def test_no_process_outlives_a_killed_training_process(how):
    context = fork_server()
    receiver, sender = context.Pipe(duplex=False)
    training = context.Process(target=_load_and_wait, args=(how, sender))
    training.start()
    pids = receiver.recv()
    assert len(pids) == 3
    training.kill()
    training.join()
    assert have_ended(pids)


@pytest.fixture
def little_memory():
    """No file of this process may become larger than 1 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@quick
def test_full_shared_memory(little_memory):
    rows = 2**20 // (8 + 18) + 1
    expected = (
        rf"^data.workers=1: cannot allocate 1.0 MiB in {SHARED} for a batch of {rows} images: "
        rf"{os.strerror(errno.EFBIG)}; 2 such batches are loaded ahead. {ADVICE}, or data.workers=0"
    )
    with (
        pytest.raises(LoadingError, match=expected),
        LoadingProcesses(NumberDecoder(), 1, TIMEOUT_S) as processes,
    ):
        list(processes.load(requests(range(rows))))


@quick
def test_processes_that_do_not_start():
    with (
        pytest.raises(LoadingError, match=r"has not answered for 0.001 s \(timeout_s\)"),
        LoadingProcesses(NumberDecoder(), 2, 0.001) as processes,
    ):
        list(processes.load(requests([1])))
