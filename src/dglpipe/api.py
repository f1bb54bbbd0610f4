"""What a program may call: `train`, `load`, `split`, under these names in `dglpipe`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dglpipe.balance import balanced
from dglpipe.config import Config, parse
from dglpipe.costs import Work, flop_costs
from dglpipe.errors import ConfigError
from dglpipe.models.signature import float_type
from dglpipe.paper import ValuesError, check_input, paper_copy
from dglpipe.partition import Traced, boundaries, check_stages, cut, trace
from dglpipe.trained import Trained, load_run
from dglpipe.training import train as train_config


def train(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Trains as `dglpipe train` does, with processes of its own on this machine.

    Args:
        config: as `dglpipe.cli.compose` makes it from overrides, or the tree of a
            `config.yaml`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        UserError: nothing was trained.
        RunFailedError: a process failed.
    """
    # Training writes into its configuration what it has chosen.
    return train_config(copy.deepcopy(config) if isinstance(config, Config) else parse(config))


def load(run_dir: str | os.PathLike[str]) -> Trained:
    """The network of a finished run with its exits, in evaluation mode, on the CPU.

    `network(x)` are its logits, `network(x, exit=j)` those of stage j, which run no stage
    above it, `network.ensemble(x)` the weighted softmax of all exits.

    Raises:
        RunDirError: not the directory of a finished run.
    """
    return load_run(Path(run_dir))


def split(
    network: nn.Module, stages: int, input_shape: Sequence[int], at: Sequence[int] | None = None
) -> list[nn.Module]:
    """Cuts `network` into modules that, one after the other, are the network, bit for bit.

    They share its parameters and buffers and keep its `state_dict` keys.

    Args:
        stages: K.
        input_shape: of one row, (C, H, W).
        at: first segment of every module but the first; None: the cut whose dearest module
            has the fewest FLOPs.

    Raises:
        ConfigError: a network that cannot be traced, more stages than segments, or images
            that do not fit.
    """
    try:
        return _split(network, stages, tuple(input_shape), at)
    except ConfigError as error:
        key = _ARGUMENTS.get(error.key, error.key)
        raise ConfigError(key, error.got, error.allowed, error.hint) from error


_ARGUMENTS = {
    "model": "network",
    "data.image_size": "input_shape",
    "pipeline.stages": "stages",
    "pipeline.split": "at",
}
"""What the keys of a configuration are called here."""


def _split(
    network: nn.Module, stages: int, row: tuple[int, ...], at: Sequence[int] | None
) -> list[nn.Module]:
    traced = trace(network)
    count = len(traced.segments)
    names = [segment.name for segment in traced.segments]
    check_stages(traced, stages)
    try:
        work = _look(trace(paper_copy(network)), row)
    except ValuesError:
        work = _look(trace(paper_copy(network, values=True)), row)
    if at is not None:
        return [*cut(traced, boundaries(list(at), count, stages, names))]
    costs = flop_costs(work, lambda _at, _row: nn.Identity(), item_bytes=4)
    free = set(range(count + 1)) - traced.joined
    bounds = balanced(costs, stages, lambda first, end: {first, end} <= free)
    if bounds is None:
        allowed = f"at most {count - len(traced.joined)}: tensors are shared by segments"
        raise ConfigError("pipeline.stages", stages, allowed)
    return [*cut(traced, bounds)]


def _look(traced: Traced, row: tuple[int, ...]) -> Work:
    shapes = check_input(traced, (2, *row), float_type(traced.network.parameters()))
    return Work(traced, [row, *(shape[1:] for shape in shapes[:-1])])
