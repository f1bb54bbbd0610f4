"""The public functions of dglpipe: `dglpipe.train`, `dglpipe.load` and `dglpipe.split`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from torch import nn

from dglpipe.config import Config, parse
from dglpipe.config.checks import whole
from dglpipe.errors import ConfigError
from dglpipe.models.meta import NeedsValuesError, meta_copy
from dglpipe.partition.balance import balanced
from dglpipe.partition.flops import Auxiliary, SegmentFlops, flop_costs
from dglpipe.partition.fx.signature import float_type
from dglpipe.partition.segments import TracedNetwork, trace
from dglpipe.partition.shape_prop import ImageSizeError, propagate_shapes
from dglpipe.partition.split import boundaries, check_stages, cut
from dglpipe.runtime.inference import TrainedNetwork, load_run
from dglpipe.runtime.run import train as train_config
from dglpipe.runtime.trust_words import Words


def train(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Trains a network as `dglpipe train` does, in new processes on this machine.

    With `resume=auto`, a finished run in `run_dir` is not trained again.

    Args:
        config: a configuration from `dglpipe.cli.compose`, or the content of a `config.yaml`
            as a dictionary.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: nothing was trained.
        RunFailedError: a process failed.

    Example:
        >>> import dglpipe
        >>> from dglpipe.cli.arguments import Arguments
        >>> from dglpipe.cli.compose import compose
        >>> settings = ["model.width=4", "pipeline.processes=1", "max_steps=20"]
        >>> config = compose(Arguments(settings, run_dir="runs/first"))
        >>> summary = dglpipe.train(config)
        >>> summary["status"], summary["stages"], summary["steps"]
        ('finished', 2, 20)
    """
    return train_config(config if isinstance(config, Config) else parse(config))


def load(run_dir: str | os.PathLike[str], trust: Words = ()) -> TrainedNetwork:
    """Loads the network of a finished run with its exits, in evaluation mode, on the CPU.

    `network(x)` returns the logits of the last stage. `network(x, exit=j)` returns the logits of
    stage j and runs only the stages up to j. `network.ensemble(x)` returns the weighted mean of
    the softmax of all exits.

    A run can name plug-ins, and the import of a plug-in executes it. Plug-ins of a run that you
    trained on this machine are imported from the files that were used in training. Plug-ins of
    other runs are imported only if `trust` names them.

    Args:
        run_dir: the run directory.
        trust: what you trust: names of distributions or modules, and files, in a sequence.

    Raises:
        RunDirError: not the directory of a finished run, or the run names a plug-in that you do not
            trust.

    Example:
        The run of the example of `train`, on one image:

        >>> import dglpipe
        >>> import torch
        >>> network = dglpipe.load("runs/first")
        >>> network(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    return load_run(Path(run_dir), trust)


def split(
    network: nn.Module, stages: int, input_shape: Sequence[int], at: Sequence[int] | None = None
) -> list[nn.Module]:
    """Cuts `network` into modules that compute the same outputs in sequence, bit for bit.

    The modules share the parameters and buffers of `network` and keep its `state_dict` keys.

    Args:
        stages: how many modules, K.
        input_shape: shape of one row: (C, H, W) for images.
        at: first segment of every module but the first; None: the cut that minimizes the FLOPs
            of the most expensive module.

    Raises:
        ConfigError: an argument that cannot be used, by name: a network that cannot be traced,
            more stages than segments, images that do not fit.

    Example:
        >>> import dglpipe
        >>> import torch
        >>> from torch import nn
        >>> layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
        >>> network = nn.Sequential(*layers, nn.Linear(128, 10))
        >>> images = torch.zeros(2, 3, 8, 8)
        >>> first, second = dglpipe.split(network, 2, input_shape=(3, 8, 8))
        >>> torch.equal(second(first(images)), network(images))
        True
    """
    if not isinstance(network, nn.Module):
        raise ConfigError("network", type(network).__name__, "a torch.nn.Module")
    count, row, firsts = whole(stages), _numbers(input_shape), _numbers(at)
    if count is None:
        raise ConfigError("stages", stages, "a whole number")
    if not row or min(row) < 1:
        raise ConfigError("input_shape", input_shape, "whole numbers from 1: (C, H, W) of one row")
    if firsts is None and at is not None:
        allowed = "None, or whole numbers: the first segment of every module but the first"
        raise ConfigError("at", at, allowed)
    try:
        return _split(network, count, row, firsts)
    except ImageSizeError as error:
        raise ConfigError("input_shape", row, error.allowed, error.reason) from error
    except ConfigError as error:
        key = _ARGUMENTS.get(error.key, error.key)
        allowed = error.allowed.removeprefix("auto, or ")
        raise ConfigError(key, error.got, allowed, error.hint) from error


def _numbers(values: object) -> tuple[int, ...] | None:
    """Converts a sequence of whole numbers of any library to a tuple; None if it is not one."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        return None
    numbers = [whole(one) for one in values]
    return None if None in numbers else tuple(one for one in numbers if one is not None)


_ARGUMENTS = {"model": "network", "pipeline.stages": "stages", "pipeline.split": "at"}
"""Arguments of `split` by the configuration keys in the errors of other modules."""


def _split(
    network: nn.Module, stages: int, row: tuple[int, ...], at: Sequence[int] | None
) -> list[nn.Module]:
    traced = trace(network)
    count = len(traced.segments)
    names = [segment.name for segment in traced.segments]
    check_stages(traced, stages)
    try:
        work = _segment_flops(trace(meta_copy(network)), row)
    except NeedsValuesError:
        work = _segment_flops(trace(meta_copy(network, values=True)), row)
    if at is not None:
        return [*cut(traced, boundaries(list(at), count, stages, names))]
    costs = flop_costs(work, lambda _at: Auxiliary((), (), False), item_bytes=4)
    free = set(range(count + 1)) - traced.joined
    bounds = balanced([costs] * stages, lambda _j, first, end: {first, end} <= free)
    if bounds is None:
        allowed = f"at most {count - len(traced.joined)}, because segments share tensors"
        raise ConfigError("pipeline.stages", stages, allowed)
    return [*cut(traced, bounds)]


def _segment_flops(traced: TracedNetwork, row: tuple[int, ...]) -> SegmentFlops:
    shapes = propagate_shapes(traced, (2, *row), float_type(traced.network.parameters()))
    return SegmentFlops(traced, [row, *(shape[1:] for shape in shapes[:-1])])
