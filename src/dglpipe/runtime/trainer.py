"""The loop of one process: every batch of the stream plan through its chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import tee
from typing import Any

from dglpipe.config import Config
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchItem, Phase, build_batch_schedule
from dglpipe.methods.backprop import Pipelined
from dglpipe.methods.dgl import Chain
from dglpipe.methods.sequential import SequentialChain
from dglpipe.models.losses import build_loss
from dglpipe.monitoring import timers
from dglpipe.monitoring.cuda_timers import CudaTimer
from dglpipe.monitoring.metrics import ENSEMBLE, Reporter, Sums
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.monitoring.trace import TracingTimer, write_part
from dglpipe.partition.pipeline_spec import build_spec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import DataFeed, Feed, LinkFeed
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.process_group import ProcessGroup, translate_peer_loss
from dglpipe.pipeline.stage import Copies, RunLength, Stage
from dglpipe.pipeline.transport import MessageFormats
from dglpipe.pipeline.weights import named_tensors, save, sha256
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.run_dir import RunDir

FEWEST_STEPS = 10
"""Of a run, or of what is left of one that is resumed: of fewer there is no throughput."""


def count_by_stage(config: Config, source: DataSource, stages: int) -> list[int]:
    """FLOPs of forward and backward of every stage with its head, for one sample."""
    on_paper = build_spec(config, source.info, stages, meta=True)
    return [on_paper.flops(j) for j in range(stages)]


class Worker:
    """One process of a run.

    Args:
        run_dir: where final weights and checkpoints go; None: nowhere.
        flops: a sample, of every stage; None: counted here, which takes seconds.
    """

    def __init__(
        self,
        config: Config,
        source: DataSource,
        device: Device,
        group: ProcessGroup,
        run_dir: RunDir | None = None,
        flops: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        self.plan = build_batch_schedule(config, source, group.topology.layout.stages)
        self.step = 0
        self.topology = group.topology
        self._first = self.topology.stages[0]
        self._arriving = Kind.LOADING if self.topology.is_first else Kind.WAIT_INPUT
        self._device = device
        self._group = group
        self._run_dir = run_dir
        self._timer = _timer(config, device)
        self._reporter = Reporter(group.store, group.topology.rank)
        self._spec = build_spec(config, source.info, group.topology.layout.stages)
        stages = [self._stage(j) for j in self.topology.stages]
        # The weights of the other processes' stages are of no use from here on.
        self._spec = replace(self._spec, modules=())
        self._checkpoints = self._open_checkpoints(stages)
        self._restored: dict[int, Any] = {}
        self.done = self._resume(stages)
        self.chain = self._chain(stages)
        self._order, ahead = tee(self._ordered())
        self._feed = self._open_feed(source, self._wanted(ahead))
        self._flops = flops or count_by_stage(config, source, self.topology.layout.stages)
        self._testing = False
        self._logged = 0.0
        self._opened: timers.Spent = {}
        self._window: tuple[timers.Spent, timers.Spent] | None = None
        self._window_rows = 0

    @property
    def decoders(self) -> int | None:
        """Processes of this one's data set (`DataSet.workers`)."""
        return self._feed.workers if isinstance(self._feed, DataFeed) else None

    def done_by(self) -> dict[int, int]:
        """Steps that the stages of this process had made when the run was resumed, where they
        are not `done`."""
        return {}

    def run(self) -> None:
        """Trains and evaluates until the plan is through.

        Raises:
            LinkError: a neighbour sent something else than the plan says.
            PeerLostError: a neighbour is gone.
        """
        with translate_peer_loss():
            self._run()
            self.chain.flush()
        self._feed.check()
        self._feed.close()

    def _begin(self) -> None:
        # Building the network and decoding the images are no part of any step.
        self._timer.lap(self._first, Kind.OTHER)
        self._opened = self._timer.snapshot()
        self._logged = timers.seconds(self._opened)

    def _run(self) -> None:
        self._begin()
        for item in self._order:
            if item.phase is Phase.TEST:
                self._evaluate(item)
                continue
            self._train(item)
            self._watch(item.step)

    def _watch(self, step: int) -> None:
        """Opens and closes the window of throughput."""
        if step == self.plan.warm_after(self._begun):
            self._opened = self._timer.snapshot()
            self._window_rows = 0
        elif step == self.plan.steps:
            self._window = self._opened, self._timer.snapshot()

    @property
    def _begun(self) -> int:
        """Steps that the last stage of this process had made before."""
        return self.done_by().get(self.topology.stages[-1], self.done)

    def finish(self) -> None:
        """Saves the final weights and sends the last report."""
        finals = []
        for stage in self.chain.stages:
            tensors = named_tensors(stage.learner)
            if self._run_dir is not None and self.topology.replica == 0:
                save(self._run_dir.final(stage.index), tensors)
            finals.append(self._final(stage, sha256(tensors)))
        if self.config.timeline and self._run_dir is not None:
            part = self._run_dir.timeline_part(self.topology.rank)
            write_part(part, self.topology.rank, self.topology.name(), self._timer.spans())
        rows, spent = self._window_rows, self._spent()
        is_long = self.plan.steps - self._begun >= FEWEST_STEPS
        rate = rows / timers.seconds(spent) if spent and rows and is_long else None
        self._reporter.finish({"samples_per_second": rate, "stages": finals})

    def _stage(self, j: int) -> Stage:
        config = self.config
        return Stage(
            j,
            self._spec.learner(j),
            config.stage(j),
            build_loss(config.method.loss, config.label_smoothing),
            self._device,
            RunLength(self.plan.steps_per_round, self.plan.steps_per_epoch),
            config.seed,
            Copies(self.topology.replica, config.pipeline.replicas, self._group.replicate),
        )

    def _layouts(self, below: int) -> MessageFormats:
        """The messages from stage `below`, or from its process, upward."""
        if self.topology.layout.is_pipelined:
            return self._spec.label_layouts(self.plan)
        return self._spec.layouts(below, self.plan)

    def _chain(self, stages: list[Stage]) -> Chain:
        spec, last = self._spec, self.topology.stages[-1]
        sender = None
        if self._group.following is not None:
            layouts = self._layouts(last)
            sender = Sender(self._group.following, layouts, self._device.torch_device)
        if self.topology.layout.is_pipelined:
            return Pipelined(stages, spec, sender, self._timer, self._group, self._device)
        fields = dict(enumerate(spec.fields))
        chain = SequentialChain if self.config.method.name == "sequential" else Chain
        return chain(stages, fields, sender, self._timer, self.topology.layout.stages)

    def _ordered(self) -> Iterator[Any]:
        """What this process does, one after the other."""
        return self.plan.items(self.topology.replica, self.done)

    def _wanted(self, order: Iterator[Any]) -> Iterator[BatchItem]:
        """The batches that it needs for that."""
        # A replica has no rows in a last test batch that is too small.
        return (item for item in order if item.rows)

    def _open_feed(self, source: DataSource, items: Iterator[BatchItem]) -> Feed:
        if self._group.previous is None:
            size = source.info.train
            return DataFeed(source.load(), size, items, self.config.seed, self._device)
        below = self.topology.stages[0] - 1
        items = (self.plan.crossing(item, below) for item in items)
        return LinkFeed(
            Receiver(
                self._group.previous,
                self._layouts(below),
                items,
                self.config.pipeline.depth,
                self._device.torch_device,
                f"link {below} -> {below + 1}",
            )
        )

    def _open_checkpoints(self, stages: list[Stage]) -> Checkpoints | None:
        if self._run_dir is None:
            return None
        return Checkpoints(
            self._run_dir.checkpoints,
            self.config,
            self.topology.layout,
            self.topology.replica,
        )

    def _resume(self, stages: list[Stage]) -> int:
        """Restores the checkpoint that rank 0 names, so that all go on from one step; returns
        that step, 0 for a run that begins."""
        if self._checkpoints is None:
            return 0
        step = self._checkpoints.newest()
        if self.topology.rank == 0:
            self._checkpoints.drop_after(step)
        step = int(self._group.exchange("resumed step", str(step))[0])
        if step:
            self._restored = self._checkpoints.restore(step, stages)
        return step

    def _train(self, item: BatchItem) -> None:
        self._timer.lap(self._first, Kind.OTHER)
        self._timer.steps_to(item.step)
        arrival = self._feed.take()
        self._timer.lap(self._first, self._arriving)
        self.step = item.step
        self.chain.train(arrival)
        self._window_rows += item.rows
        if item.step % self.config.log_every == 0 or item.ends_pass:
            self._log(item)
        self._save(item.step, self.chain.stages)

    def _save(self, step: int, stages: Sequence[Stage]) -> None:
        """Writes the checkpoint of `stages` if there is one after `step`."""
        every = self.config.checkpoint.every
        if self._checkpoints is not None and every and step % every == 0:
            self._feed.check()
            self._checkpoints.save(step, stages, self._more(stages))
            self._timer.lap(stages[0].index, Kind.LOGGING)

    def _more(self, stages: Sequence[Stage]) -> dict[int, Any] | None:
        """What a checkpoint keeps of every stage besides weights, optimizer and loss scaler."""
        del stages
        return None

    def _evaluate(self, item: BatchItem) -> None:
        self._timer.lap(self._first, Kind.OTHER)
        if not self._testing:
            self._testing = True
            self.chain.eval_mode(True)
            for stage in self.chain.stages:
                self._group.average(stage.learner.buffers())
        if item.rows:
            self.chain.evaluate(self._feed.take())
        if item.ends_pass:
            self._log_test(item)
            self.chain.eval_mode(False)
            self._testing = False
        self._timer.lap(self._first, Kind.EVALUATING)

    def _log(self, item: BatchItem) -> None:
        self._feed.check()
        now = timers.seconds(self._timer.snapshot())
        for stage in self.chain.learners(item):
            self._log_stage(stage, item.epoch, item.step, item.round_step, now - self._logged)
        self._logged = now

    def _log_stage(
        self, stage: Stage, epoch: int, step: int, round_step: int, seconds: float
    ) -> None:
        totals = stage.totals()
        sums = Sums(
            kind="train",
            epoch=epoch,
            step=step,
            stage=stage.index,
            rows=totals.rows,
            loss=totals.loss if stage.learner.is_exit else None,
            correct=totals.correct if stage.learner.is_exit else None,
            learning_rate=stage.learning_rate(round_step),
            seconds=seconds,
        )
        self._reporter.send(sums)
        self._timer.lap(stage.index, Kind.LOGGING)

    def _log_test(self, item: BatchItem) -> None:
        rows = 0
        for stage in self.chain.stages:
            if stage.learner.is_exit:
                totals = stage.test_totals()
                rows = totals.rows
                self._send_test(item, stage.index, rows, totals.loss, totals.correct)
        hits = self.chain.ensemble_hits()
        if hits is not None:
            self._send_test(item, ENSEMBLE, rows, None, hits)

    def _send_test(
        self, item: BatchItem, stage: int | str, rows: int, loss: float | None, correct: int
    ) -> None:
        self._reporter.send(Sums("test", item.epoch, item.step, stage, rows, loss, correct))

    def _spent(self) -> timers.Spent | None:
        return None if self._window is None else timers.between(*self._window)

    def _final(self, stage: Stage, digest: str) -> dict[str, Any]:
        """The entry of `per_stage` in `summary.json`."""
        j, spec, spent = stage.index, self._spec, self._spent()
        head = stage.learner.head
        return {
            "stage": j,
            "process": self.topology.process,
            "segments": list(spec.segments[j]),
            "parameters": _count(stage.learner.segments),
            "head_parameters": 0 if head is None else _count(head),
            "flops_per_sample": self._flops[j],
            "link_bytes_per_sample": spec.row_bytes(j),
            **(timers.shares(spent, j) if spent else dict.fromkeys(timers.SHARE_NAMES)),
            "peak_memory_bytes": self._device.peak_memory(),
            "weights_sha256": digest,
        }


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _timer(config: Config, device: Device) -> Timer:
    own = TracingTimer() if config.timeline else Timer()
    return CudaTimer(device.torch_device, own) if device.is_cuda else own
