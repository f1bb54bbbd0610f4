"""Linear probes: how well a linear classifier reads the classes from the output of every stage.

    python tools/probe.py RUN_DIR [--images 10000] [--side 2] [--output FILE.json]

The output of each stage of a finished run, average-pooled to at most SIDE x SIDE, is standardised
and given to a multinomial logistic regression. It is fitted to training images without augmentation
and tested on the test split. The classifier of the network itself is the probe of the last stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dglpipe
from dglpipe.data import DataSet
from dglpipe.data.dataset import Request
from dglpipe.errors import DglpipeError
from dglpipe.models.features import Features
from dglpipe.runtime.finished_run import FinishedRun
from dglpipe.runtime.inference import TrainedNetwork
from dglpipe.runtime.open_data import open_images

PENALTY = 1e-4
"""Factor of the squared L2 norm of the weights."""
ITERATIONS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory of a finished run")
    parser.add_argument("--images", type=int, default=10_000, help="training images of the probes")
    parser.add_argument("--side", type=int, default=2, help="largest side of the pooled maps")
    parser.add_argument("--batch-size", type=int, default=500, help="images at a time")
    parser.add_argument("--trust", nargs="*", default=(), help="plug-ins of the run to import")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file of the results")
    given = parser.parse_args()
    for name in ("images", "side", "batch_size"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(given, name)}; allowed: from 1")
    try:
        results = probe_run(given)
    except DglpipeError as error:
        sys.exit(f"probe: {error}")
    sys.stdout.write("stage  width  probe   exit\n")
    for one in results:
        found, exit_ = percent(one["probe"]), percent(one["exit"])
        sys.stdout.write(f"{one['stage']:5}  {one['width'] or '-':>5}  {found}  {exit_}\n")
    if given.output is not None:
        settings = {"images": given.images, "side": given.side}
        given.output.write_text(json.dumps({**settings, "stages": results}, indent=2) + "\n")


def percent(value: float | None) -> str:
    return f"{'-':>5}" if value is None else f"{100 * value:5.1f}"


def probe_run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Test accuracy of the probe and of the exit of every stage."""
    config = FinishedRun.open(given.run, given.trust).config
    if hasattr(config.data, "augment"):
        own: Any = config.data
        config = dataclasses.replace(config, data=dataclasses.replace(own, augment=False))
    network = dglpipe.load(given.run, given.trust)
    source = open_images(config)
    info, data = source.info, source.load()
    count, rows = min(given.images, info.train), given.batch_size
    try:
        fitted = read(network, data, requests(True, count, info.train, rows), given.side)
        tested = read(network, data, requests(False, info.test, info.test, rows), given.side)
    finally:
        data.close()
    results: list[dict[str, Any]] = []
    for j, exit_ in enumerate(tested.exits):
        has_probe = j < len(tested.exits) - 1
        width = fitted.outputs[j].shape[1] if has_probe else None
        found = probe(fitted, tested, j, len(info.classes)) if has_probe else None
        results.append({"stage": j, "width": width, "probe": found, "exit": exit_})
    return results


def requests(training: bool, count: int, size: int, rows: int) -> Iterator[Request]:
    """Requests for `count` images, spread evenly over a split of `size`, which may be sorted."""
    indices = torch.arange(count) * size // count
    for first in range(0, count, rows):
        yield Request(training, 1, indices[first : first + rows])


class Read(NamedTuple):
    """What a network makes of a split."""

    outputs: list[Tensor]
    """Pooled output (n, d) of every stage but the last."""
    labels: Tensor
    """(n,)"""
    exits: list[float | None]
    """Accuracy of every exit; None for a stage without an exit."""


def read(network: TrainedNetwork, data: DataSet, asked: Iterator[Request], side: int) -> Read:
    """Runs all stages on the images that are `asked` for."""
    outputs: list[list[Tensor]] = [[] for _ in network.stages]
    hits: list[list[Tensor]] = [[] for _ in network.stages]
    labels = []
    with torch.no_grad():
        for images, answers in data.batches(asked):
            labels.append(answers)
            for j, output in enumerate(network.outputs(images)):
                if j < len(network.channels_at):
                    outputs[j].append(vector(output, network.channels_at[j], side))
            for j, logits in enumerate(network.exits(images)):
                if logits is not None:
                    hits[j].append(logits.argmax(1) == answers)
    exits = [float(torch.cat(one).float().mean()) if one else None for one in hits]
    return Read([torch.cat(one) for one in outputs if one], torch.cat(labels), exits)


def vector(output: Tensor, channels_at: int, side: int) -> Tensor:
    """(B, d) of an output: a map pooled to at most `side`, the mean of a sequence."""
    adapter = Features(tuple(output.shape[1:]), channels_at).adapter()
    output = output.float() if adapter is None else adapter(output.float())
    if output.dim() > 2:
        height, width = (min(side, length) for length in output.shape[2:])
        output = nn.functional.adaptive_avg_pool2d(output, (height, width))
    return output.flatten(1)


def probe(fitted: Read, tested: Read, stage: int, classes: int) -> float:
    """Accuracy on `tested` of a logistic regression fitted to the outputs `fitted` of `stage`."""
    inputs = fitted.outputs[stage]
    mean, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    inputs = (inputs - mean) / scale
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = nn.functional.linear(inputs, weight, bias)
        value = nn.functional.cross_entropy(logits, fitted.labels)
        value = value + PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits = nn.functional.linear((tested.outputs[stage] - mean) / scale, weight, bias)
    return float((logits.argmax(1) == tested.labels).float().mean())


if __name__ == "__main__":
    main()
