"""Peak memory of every process, split into weights, optimizer, activations and links.

    python benchmarks/memory/memory.py --output FILE.json
    python benchmarks/memory/memory.py --batch 16 64 256 --output FILE.json

Each method trains a few steps on the same batch, in real processes, under
`torch.distributed._tools.mem_tracker`, which sees every tensor. Resident size would not do: a
process starts at half a gigabyte of libraries, and malloc keeps what is freed. With several sizes
of the batch it names the memory of a device up to which one method gets a larger batch into it
than another.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.process_group import ProcessGroup, rendezvous
from dglpipe.pipeline.transport import Slot
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.trainer import Trainer
from dglpipe.runtime.worker import open_trainer

sys.path.append(str(Path(__file__).parents[1]))

import record

CPU = Device(torch.device("cpu"), "gloo")
MIB = 2**20
PARTS = {
    "weights": ("Parameter", "Gradient", "Buffer"),
    "optimizer": ("Optstate",),
    "activations": ("Activation", "Temp"),
    "other": ("Other",),
}
"""Ours, and what the tracker calls them. Of other there are the buffers of the links."""


class Tracker(MemTracker):
    """Without figures module by module, of which it cannot make several in a step: a pipeline runs
    each module once for every micro-batch."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        self._track_module_params_and_buffers(module)

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...


def main() -> None:
    arguments = parse()
    record.prepare(arguments.output)
    rows = []
    for count, batch in itertools.product(arguments.processes, arguments.batch):
        for name, words in methods(count, arguments.microbatches).items():
            whole = [*arguments.overrides, *words, f"batch_size={batch}"]
            peaks = measure(compose(parse_arguments([*whole, f"max_steps={arguments.steps}"])))
            rows.append({"method": name, "processes": count, "batch": batch, "peak_bytes": peaks})
            sys.stdout.write(told(rows[-1]) + "\n")
            sys.stdout.flush()
    crossed = crossings(rows)
    for line in crossed:
        sys.stdout.write(line + "\n")
    record.store(arguments.output, rows=rows, crossings=crossed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--batch", nargs="+", type=int, default=[128], help="rows, rising")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", help="JSON file of the results")
    network = ["model=cnn6", "model.width=64", "data.image_size=32"]
    parser.add_argument("overrides", nargs="*", default=network, help="network and data")
    return parser.parse_args()


def methods(count: int, microbatches: int) -> dict[str, list[str]]:
    """What the command line of each method is, on `count` processes."""
    chain = [f"pipeline.stages={count}", f"pipeline.processes={count}"]
    backprop = ["method=backprop", *chain, f"method.microbatches={microbatches}"]
    return {
        "DGL": chain,
        "GPipe": [*backprop, "method.schedule=gpipe"],
        "1F1B": [*backprop, "method.schedule=1f1b"],
        "data-parallel": ["method=backprop", f"pipeline.replicas={count}"],
    }


def measure(config: Config) -> list[dict[str, int]]:
    """Bytes of every process at its peak, by part."""
    config.evaluate.every = 0
    config.pipeline.threads = 1
    layout = plan_layout(config.pipeline, config.method, 1)
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("fork").Queue()
        mp.start_processes(run, (config, folder, results), layout.world_size, start_method="fork")
        peaks = dict(results.get() for _ in range(layout.world_size))
    return [peaks[rank] for rank in sorted(peaks)]


def run(rank: int, config: Config, folder: str, results: Any) -> None:
    """One process of the run."""
    torch.set_num_threads(1)
    layout = plan_layout(config.pipeline, config.method, 1)
    store = rendezvous(120, f"file://{folder}/store", rank, layout.world_size)
    group = ProcessGroup.connect(layout.at(rank), CPU, store, 120)
    source = open_images(config)
    trainer = open_trainer(make_plan(config, layout, source=source), source, CPU, group)
    tracker = Tracker()
    for stage in trainer.runner.stages:
        tracker.track_external(stage.module, stage.optimizer)
    slots = [one for one in gc.get_objects() if type(one) is Slot]
    tracker.track_external(*(slot.buffer for slot in slots))
    with tracker:
        trainer.run()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    named = {str(getattr(kind, "value", kind)): size for kind, size in snapshot.items()}
    peak = {part: sum(named.get(n, 0) for n in names) for part, names in PARTS.items()}
    results.put((rank, with_buckets(peak, trainer) if layout.replicas > 1 else peak))
    results.close()
    results.join_thread()
    group.close()


def with_buckets(peak: dict[str, int], trainer: Trainer) -> dict[str, int]:
    """Of a replica: its gradients lie in buckets, of which the tracker knows not what they hold."""
    weights = [w for stage in trainer.runner.stages for w in stage.module.parameters()]
    gradients = sum(weight.numel() * weight.element_size() for weight in weights)
    return {
        **peak,
        "weights": peak["weights"] + gradients,
        "activations": peak["activations"] - gradients,
    }


def told(row: dict[str, Any]) -> str:
    what = f"{row['method']}, {row['processes']} processes, batch {row['batch']}"
    lines = [f"{what}, MiB at the peak of each"]
    for rank, peak in enumerate(row["peak_bytes"]):
        parts = ", ".join(f"{part} {size / MIB:.1f}" for part, size in peak.items())
        lines.append(f"  {rank}: {sum(peak.values()) / MIB:7.1f} ({parts})")
    return "\n".join(lines)


def crossings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The memory of a device, and the batch in it, at which one method needs less than another.

    Between two sizes of the batch that were measured, memory is taken to grow evenly.
    """
    fullest: dict[int, dict[str, dict[int, float]]] = {}
    for row in rows:
        most = max(sum(peak.values()) for peak in row["peak_bytes"]) / MIB
        fullest.setdefault(row["processes"], {}).setdefault(row["method"], {})[row["batch"]] = most
    lines = []
    for count, needs in fullest.items():
        for one, other in itertools.combinations(needs, 2):
            for a, b in itertools.pairwise(needs[one]):
                before, after = (needs[one][at] - needs[other][at] for at in (a, b))
                if before * after < 0:
                    share = before / (before - after)
                    size = needs[one][a] + share * (needs[one][b] - needs[one][a])
                    low, high = (one, other) if before < 0 else (other, one)
                    lines.append(
                        f"{count} processes: {low} needs less up to {size:.0f} MiB, {high} from "
                        f"there on (batch {a + share * (b - a):.0f})"
                    )
    return lines


if __name__ == "__main__":
    main()
