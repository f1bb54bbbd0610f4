"""Balance of even and automatic cuts: slowest stage / mean stage, predicted and measured.

    python benchmarks/balance/balance.py --output FILE.json

Four cuts of each network and K: even, by FLOPs, by measured time, and the cut with the least
slowest / mean of all cuts, by measured time. The stages of all four make steps in alternation, on
one thread; the result is the median over the rounds. The script also gives the least slowest / mean
of the cuts whose slowest stage is within 1 % of the fastest possible. The most even cut may not be
among these, because heads differ in cost. Only the slowest stage determines the throughput.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import interval, log
from benchmarks.processes import CPU
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.methods import build_run_method
from dglpipe.models import build_network
from dglpipe.models.meta import building
from dglpipe.partition.auto_split import measure_times, measured_costs, network_costs
from dglpipe.partition.balance import SegmentCosts
from dglpipe.partition.cut_problem import CutProblem
from dglpipe.partition.segments import trace
from dglpipe.partition.staged_network import build_staged_network
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.runtime.open_data import open_images

NETWORKS = {
    "vgg16_bn": 32,
    "resnet50": 64,
    "mobilenet_v3_large": 64,
    "vit_b_16": 64,
}
"""Side of the images of each network."""
SPLITS = {"even": "even", "flops": "auto", "time": "auto"}
CUTS = (*SPLITS, "most even")
"""`most even`: the least slowest / mean of all cuts, by measured time."""
SAME = 1.01
"""Slowest stages within this factor count as equal: the accuracy of the measured times."""


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    torch.set_num_threads(1)
    rows = []
    for name in arguments.networks:
        for stages in arguments.stages:
            found = compare(name, stages, arguments.batch, arguments.rounds)
            log(*map(describe, found))
            rows += found
    common.store(arguments.output, rows=rows)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args(words)


def compare(name: str, stages: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row a cut."""
    config = settings(name, stages, batch)
    data = open_images(config).info
    method = build_run_method(config, stages, data)
    (measured,) = measure_times(config, method, data, CPU, 1, batch, 1)
    config.pipeline.times = asdict(measured)
    times = measured_costs(config.pipeline.times)
    inner = itertools.combinations(range(1, len(times.segments)), stages - 1)
    every = {cut: times.stages([0, *cut]) for cut in inner}
    limit = SAME * min(map(max, every.values()))
    most_even = min(every, key=lambda cut: imbalance(every[cut]))
    chains, predicted, slowest, bounds = {}, {}, {}, {}
    for cut in CUTS:
        config.pipeline.split = SPLITS.get(cut, list(most_even))
        config.pipeline.cost = "flops" if cut == "flops" else "time"
        spec = build_staged_network(config, method, data, stages, meta=True).spec
        bounds[cut] = spec.bounds
        costs = flops(config, data) if cut == "flops" else times
        predicted[cut] = imbalance(costs.stages(spec.bounds))
        slowest[cut] = max(times.stages(spec.bounds))
        config.pipeline.split = list(spec.bounds[1:])
        chains[cut] = Timed(config, stages)
    for chain in chains.values():
        chain.step()
    ways = {cut: chain.step for cut, chain in chains.items()}
    seconds = common.rounds(ways, rounds, rotate=False)
    rows: list[dict[str, Any]] = []
    even = 1.0
    for cut in CUTS:
        typical = [median(one) for one in zip(*seconds[cut], strict=True)]
        even = max(typical) if cut == "even" else even
        low, _, high = quantiles([imbalance(one) for one in seconds[cut]])
        rows.append(
            {
                "network": name,
                "stages": stages,
                "cut": cut,
                "bounds": list(bounds[cut]),
                "predicted": predicted[cut],
                "least_of_all_cuts": imbalance(every[most_even]),
                "least_of_fastest_cuts": min(
                    imbalance(one) for one in every.values() if max(one) <= limit
                ),
                "measured": imbalance(typical),
                "quartiles_over_rounds": [low, high],
                # Time of the slowest stage, which limits the throughput, over that of the even cut.
                "slowest_predicted": slowest[cut] / slowest["even"],
                "slowest_measured": max(typical) / even,
            }
        )
    return rows


def flops(config: Config, data: DataInfo) -> SegmentCosts:
    """The costs of `pipeline.cost=flops`."""
    with building(True, 0):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    problem = CutProblem(config, build_run_method(config, 1, data), data, trace(network), 1)
    return network_costs(problem)[0]


class Timed:
    """All stages of a cut, in this process."""

    def __init__(self, config: Config, stages: int) -> None:
        data = open_images(config).info
        network = build_staged_network(config, build_run_method(config, stages, data), data, stages)
        length = RunLength(1000, 1000)
        self._stages = [
            Stage(j, network.learner(j), config.stage(j), Learning(), CPU, length, 0)
            for j in range(stages)
        ]
        rows = config.batch_size
        self._batches = []
        for j in range(stages):
            dtype = PRECISIONS[config.precision.name].dtype if j else torch.float32
            batch = torch.randn(rows, *network.spec.input_shape(j)).to(dtype)
            if batch.dim() == 4:
                batch = batch.to(memory_format=torch.channels_last)
            self._batches.append(batch)
        self._labels = torch.randint(0, len(data.classes), (rows,))
        self._number = 0

    def step(self) -> list[float]:
        """Seconds of a step of every stage."""
        self._number += 1
        spent = []
        for stage, batch in zip(self._stages, self._batches, strict=True):
            start = time.perf_counter()
            stage.learn(batch, self._labels, self._number, None)
            spent.append(time.perf_counter() - start)
        return spent


def settings(name: str, stages: int, batch: int) -> Config:
    side = NETWORKS[name]
    words = ["model=torchvision", f"model.name={name}"]
    if name.startswith("vit"):
        words.append(f"+model.args.image_size={side}")
    data = [f"data.image_size={side}", f"batch_size={batch}", f"pipeline.stages={stages}"]
    return compose(parse_arguments([*words, "data=synthetic", "data.samples=64", *data]))


def imbalance(times: Sequence[float]) -> float:
    """Slowest / mean."""
    return max(times) * len(times) / sum(times)


def describe(row: dict[str, Any]) -> str:
    return (
        f"{row['network']:20} K={row['stages']} {row['cut']:9} predicted "
        f"{row['predicted']:.2f} measured "
        f"{interval(row['measured'], *row['quartiles_over_rounds'])} "
        f"slowest/even's {row['slowest_predicted']:.2f} {row['slowest_measured']:.2f} "
        f"least of all cuts {row['least_of_all_cuts']:.2f}, of the fastest "
        f"{row['least_of_fastest_cuts']:.2f} {row['bounds']}"
    )


if __name__ == "__main__":
    main()
