import json
import threading
import time
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from dglpipe.errors import PeerLostError, StorageError
from dglpipe.monitoring.metrics import Collector, JsonLines, ProbeLine, Reporter, Sums, combine

FULL = Path("/dev/full")
"""A device on which every write fails with ENOSPC."""


def sums(**values):
    defaults = {
        "kind": "train",
        "epoch": 1,
        "step": 10,
        "stage": 0,
        "rows": 4,
        "loss": 2.0,
        "correct": 1,
        "learning_rate": 0.1,
        "seconds": 2.0,
    }
    return Sums(**{**defaults, **values})


def test_replicas_are_summed():
    line = combine([sums(), sums(rows=12, loss=6.0, correct=7, seconds=3.0)])
    assert line.loss == pytest.approx(8 / 16)
    assert line.accuracy == pytest.approx(8 / 16)
    assert line.samples_per_second == pytest.approx(4 / 2 + 12 / 3)
    assert line.learning_rate == 0.1


def test_the_ensemble_has_no_loss():
    line = combine([sums(kind="test", stage="ensemble", loss=None, learning_rate=None)])
    assert line.loss is None
    assert line.accuracy == 0.25


class Lines:
    def __init__(self):
        self.lines = []
        self.closed = False

    def line(self, line):
        self.lines.append(line)

    def close(self):
        self.closed = True


def test_records_of_all_ranks_become_lines():
    store, sink = HashStore(), Lines()
    collector = Collector(store, ranks=2, replicas=2, sinks=[sink])
    for rank in range(2):
        reporter = Reporter(store, rank)
        reporter.send(sums(correct=rank))
        reporter.send(sums(step=20, correct=rank))
        reporter.finish({"rank": rank})
    assert collector.finals(5) == [{"rank": 0}, {"rank": 1}]
    assert [(line.step, line.accuracy) for line in sink.lines] == [(10, 1 / 8), (20, 1 / 8)]
    assert sink.closed


def test_a_measurement_is_a_line_once():
    """One replica sends it. A process that is started again repeats it."""
    store, sink = HashStore(), Lines()
    reporter = Reporter(store, 0)
    for norm, step in ((1.5, 10), (1.5, 10), (1.0, 20)):
        reporter.send_probe(ProbeLine("probe", 1, step, 2, norm, None))
    reporter.finish({})
    Reporter(store, 1).finish({})
    Collector(store, ranks=2, replicas=2, sinks=[sink]).finals(5)
    assert [(line.step, line.gradient_norm) for line in sink.lines] == [(10, 1.5), (20, 1.0)]


def test_a_checkpoint_is_complete_when_all_ranks_have_reported_and_their_lines_are_there():
    store, sink, done = HashStore(), Lines(), []

    def complete(step, files):
        done.append((step, sorted(file["file"] for file in files), len(sink.lines)))

    collector = Collector(store, ranks=2, replicas=1, sinks=[sink], complete=complete)
    reporters = [Reporter(store, rank) for rank in range(2)]
    for rank in (1, 0):
        for step in (10, 20):
            reporters[rank].send(sums(step=step, stage=rank))
            reporters[rank].checkpoint(step, [{"file": f"{rank}"}])
        reporters[rank].finish({})
    collector.finals(5)
    assert [(step, files) for step, files, _ in done] == [(10, ["0", "1"]), (20, ["0", "1"])]
    assert done[0][2] >= 2
    assert done[1][2] == 4


def test_records_of_two_threads_are_all_received():
    store, sink = HashStore(), Lines()
    reporter = Reporter(store, 0)
    send = [threading.Thread(target=send_many, args=(reporter, stage)) for stage in range(2)]
    for thread in send:
        thread.start()
    for thread in send:
        thread.join()
    reporter.finish({})
    Collector(store, 1, 1, [sink]).finals(20)
    for stage in range(2):
        assert [line.step for line in sink.lines if line.stage == stage] == list(range(200))


def send_many(reporter, stage):
    for step in range(200):
        reporter.send(sums(step=step, stage=stage))


def test_the_next_process_of_a_rank_repeats_no_line_and_replaces_no_checkpoint():
    store, sink, done = HashStore(), Lines(), []

    def complete(step, files):
        done.append((step, sorted(one["file"] for one in files)))

    collector = Collector(store, ranks=2, replicas=1, sinks=[sink], complete=complete)
    first, other = Reporter(store, 0), Reporter(store, 1)
    first.send(sums(step=10))
    first.checkpoint(10, [{"file": "0 of 10"}])
    first.send(sums(step=20, loss=3.0))
    assert collector.renew(1) is None
    assert collector.renew(0) == (10, [{"file": "0 of 10"}])
    first.send(sums(step=30, loss=9.0))  # the process has ended: its record is not read
    second = Reporter(store, 0, 1)
    second.send(sums(step=20, loss=4.0))
    second.checkpoint(20, [{"file": "0 of 20"}])
    second.send(sums(step=30, loss=5.0))
    second.send(sums(step=20, kind="test"))
    other = Reporter(store, 1, 1)
    for step in (10, 20):
        other.checkpoint(step, [{"file": f"1 of {step}"}])
    for reporter in (second, other):
        reporter.finish({})
    collector.finals(5)
    assert [(one.kind, one.step, one.loss) for one in sink.lines] == [
        ("train", 10, 0.5),
        ("train", 20, 0.75),
        ("train", 30, 1.25),
        ("test", 20, 0.5),
    ]
    assert done == [(10, ["0 of 10", "1 of 10"]), (20, ["0 of 20", "1 of 20"])]


def test_a_silent_rank_is_named():
    collector = Collector(HashStore(), ranks=2, replicas=1, sinks=[])
    with pytest.raises(PeerLostError, match=r"ranks \[0, 1\]"):
        collector.finals(0.05)
    collector.close()


def test_an_error_in_the_thread_is_not_lost():
    class Broken(Lines):
        def line(self, line):
            raise OSError("no space left")

    store = HashStore()
    collector = Collector(store, ranks=1, replicas=1, sinks=[Broken()])
    Reporter(store, 0).send(sums())
    with pytest.raises(OSError, match="no space left"):
        collector.finals(5)
    with pytest.raises(OSError, match="no space left"):
        collector.check()


def test_a_full_disk_ends_the_training_at_once():
    """`check` raises the error while the processes train; `close` does not hide it."""
    store = HashStore()
    collector = Collector(store, ranks=1, replicas=1, sinks=[JsonLines(FULL)])
    collector.check()
    reporter = Reporter(store, 0)
    reporter.send(sums())
    deadline = time.monotonic() + 5
    with pytest.raises(StorageError, match=r"^No space left on device: /dev/full$"):
        while time.monotonic() < deadline:
            collector.check()
            time.sleep(0.01)
    with pytest.raises(StorageError):
        collector.close()


def test_a_deleted_file_is_noticed_at_the_next_line(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.line(combine([sums()]))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(StorageError, match=r"^No such file or directory: .*metrics\.jsonl$"):
        sink.line(combine([sums(step=20)]))


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.line(combine([sums()]))
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    sink.sync()
    assert sink.count == 1
    assert json.loads(text) == {
        "kind": "train",
        "epoch": 1,
        "step": 10,
        "stage": 0,
        "loss": 0.5,
        "accuracy": 0.25,
        "learning_rate": 0.1,
        "samples_per_second": 2.0,
    }
    sink.close()


def test_a_full_disk_is_named():
    sink = JsonLines(Path("/dev/full"))
    with pytest.raises(StorageError, match="No space left on device: /dev/full"):
        sink.line(combine([sums()]))


def test_the_collector_sleeps_without_records():
    """A thread beside the training loop must not use its core."""
    collector = Collector(HashStore(), ranks=8, replicas=1, sinks=[])
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1
    collector.close()
