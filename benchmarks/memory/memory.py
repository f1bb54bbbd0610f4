"""Peak memory of every process, split into weights, optimizer, activations and links.

    python benchmarks/memory/memory.py --output FILE.json
    python benchmarks/memory/memory.py --batch 16 64 256 --output FILE.json

Each method trains a few steps on the same batch, in real processes, under
`torch.distributed._tools.mem_tracker`, which records every tensor. Resident size is no substitute:
a process starts at half a gigabyte of libraries, and malloc keeps freed memory. With several sizes
of the batch the script also prints the device memory up to which one method fits a larger batch
than another.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log
from benchmarks.memory.crossings import MIB, crossings
from benchmarks.processes import CPU, connect, in_processes
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.pipeline.transport import Slot
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.trainer import Trainer
from dglpipe.runtime.worker import open_trainer

PARTS = {
    "weights": ("Parameter", "Gradient", "Buffer"),
    "optimizer": ("Optstate",),
    "activations": ("Activation", "Temp"),
    "other": ("Other",),
}
"""Our parts and the tracker's kinds. `other` has the buffers of the links."""


class Tracker(MemTracker):  # type: ignore[no-untyped-call]
    """Without figures of each module, which fail if a module runs more than once a step.

    A pipeline runs each module once for every micro-batch.
    """

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        self._track_module_params_and_buffers(module)

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    rows = []
    for count, batch in itertools.product(arguments.processes, arguments.batch):
        for name, words in methods(count, arguments.microbatches).items():
            whole = [*arguments.overrides, *words, f"batch_size={batch}"]
            peaks = measure(compose(parse_arguments([*whole, f"max_steps={arguments.steps}"])))
            rows.append({"method": name, "processes": count, "batch": batch, "peak_bytes": peaks})
            log(describe(rows[-1]))
    crossed = crossings(rows)
    log(*crossed)
    common.store(arguments.output, rows=rows, crossings=crossed)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--batch", nargs="+", type=int, default=[128], help="rows, rising")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    network = ["model=cnn6", "model.width=64", "data.image_size=32"]
    parser.add_argument("overrides", nargs="*", default=network, help="network and data")
    return parser.parse_args(words)


def methods(count: int, microbatches: int) -> dict[str, list[str]]:
    """The overrides of each method on `count` processes."""
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
    return in_processes(run, layout.world_size, config)


def run(rank: int, folder: str, config: Config) -> dict[str, int]:
    """The peak of one process, by part."""
    layout = plan_layout(config.pipeline, config.method, 1)
    group = connect(rank, folder, layout)
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
    group.close()
    return with_buckets(peak, trainer) if layout.replicas > 1 else peak


def with_buckets(peak: dict[str, int], trainer: Trainer) -> dict[str, int]:
    """Counts the buckets of a replica as gradients; the tracker counts them as activations."""
    weights = [w for stage in trainer.runner.stages for w in stage.module.parameters()]
    gradients = sum(weight.numel() * weight.element_size() for weight in weights)
    return {
        **peak,
        "weights": peak["weights"] + gradients,
        "activations": peak["activations"] - gradients,
    }


def describe(row: dict[str, Any]) -> str:
    what = f"{row['method']}, {row['processes']} processes, batch {row['batch']}"
    lines = [f"{what}, MiB at the peak of each"]
    for rank, peak in enumerate(row["peak_bytes"]):
        parts = ", ".join(f"{part} {size / MIB:.1f}" for part, size in peak.items())
        lines.append(f"  {rank}: {sum(peak.values()) / MIB:7.1f} ({parts})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
