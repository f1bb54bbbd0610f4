"""A trained network with its exits, from a run directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dglpipe.config.checks import whole
from dglpipe.data import DataInfo
from dglpipe.errors import ConfigError, RunDirError, UserError
from dglpipe.methods.registry import build_method
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.stage import HEAD, StageModule, cast_input
from dglpipe.pipeline.weights import (
    load_final,
    load_tensors,
    save,
    split_auxiliary,
    without_prefix,
)
from dglpipe.runtime.run_dir import RunDir

EXITS = "exits."


class TrainedNetwork(nn.Module):
    """All stages of a run, in evaluation mode: logits from any exit.

    Attributes:
        stages: one `StageModule` per stage, in order, with segments and auxiliary modules.

    Example:
        >>> import dglpipe
        >>> import torch
        >>> network = dglpipe.load("runs/first")
        >>> images = torch.zeros(1, 1, 8, 8)
        >>> network(images, exit=0).shape  # logits of stage 0; the stages above do not run
        torch.Size([1, 10])
        >>> len(network.exits(images))  # logits of all stages, in one pass
        2
        >>> network.ensemble(images).shape
        torch.Size([1, 10])
    """

    def __init__(self, network: StagedNetwork) -> None:
        super().__init__()
        self.stages = nn.ModuleList(network.learner(j) for j in range(network.spec.stages))
        self._precisions = [network.precision(j) for j in range(len(self.stages))]

    def forward(self, batch: Tensor, exit: int | None = None) -> Tensor:
        """Logits (B, N) of `batch` (B, C, H, W), normalised as in training.

        Args:
            exit: index j of the stage; the stages above do not run. None: the last stage, which
                ends in the network's own classifier.

        Raises:
            ConfigError: the stage does not exist or has no exit.
        """
        count = len(self.stages)
        end = count - 1 if exit is None else whole(exit)
        if end is None or not 0 <= end < count or not self._stage(end).is_exit:
            there = [j for j in range(count) if self._stage(j).is_exit]
            raise ConfigError("exit", exit, f"one of {there}")
        for j in range(end):
            batch = self._stage(j).segments(self._cast(j, batch))
        logits: Tensor = self._stage(end)(self._cast(end, batch), None)
        return logits

    def exits(self, batch: Tensor) -> list[Tensor | None]:
        """Logits (B, N) of every stage, in one pass; None for a stage without an exit."""
        logits: list[Tensor | None] = []
        for j in range(len(self.stages)):
            stage = self._stage(j)
            batch = stage.segments(self._cast(j, batch))
            logits.append(stage.logits(batch) if stage.is_exit else None)
        return logits

    def _stage(self, j: int) -> StageModule:
        return cast(StageModule, self.stages[j])

    def _cast(self, j: int, batch: Tensor) -> Tensor:
        return cast_input(batch, self._precisions[j])

    def ensemble(self, batch: Tensor) -> Tensor:
        """Mean of the softmax (B, N) of all exits, weighted 2^j (the paper's section 4.2)."""
        found = [(2.0**j, one) for j, one in enumerate(self.exits(batch)) if one is not None]
        parts = [weight * torch.softmax(one.float(), dim=1) for weight, one in found]
        return torch.stack(parts).sum(dim=0) / sum(weight for weight, _ in found)


def load_run(path: Path) -> TrainedNetwork:
    """The network of a finished run with its final weights, on the CPU, in evaluation mode.

    Raises:
        RunDirError: `path` is not the directory of a finished run, or a file is damaged.
    """
    network, run_dir = _open(path)
    trained = TrainedNetwork(network)
    for j, stage in enumerate(trained.stages):
        module = cast(StageModule, stage)
        load_tensors(module, load_final(run_dir.final(j), module))
    return trained.eval()


def export_run(path: Path, output: Path, exits: bool = False) -> int:
    """Writes the trained network as safetensors under its own `state_dict` keys.

    Args:
        exits: also write the heads, under `exits.<j>.` + key.

    Returns:
        The number of tensors written.

    Raises:
        RunDirError: `path` is not the directory of a finished run, or a file is damaged.
        UserError: the file cannot be written or is in the run's `final/`; the network has keys
            that begin with `exits.`.
    """
    network, run_dir = _open(path, meta=True)
    folder = run_dir.manifest.parent
    if output.resolve().is_relative_to(folder.resolve()):
        hint = "This folder contains the weights of the run"
        raise ConfigError("output", str(output), f"a file outside of {folder}", hint)
    tensors: dict[str, Tensor] = {}
    for j, module in enumerate(network.modules):
        keys = set(module.state_dict())
        if exits:
            _refuse_exits(keys)
        own, rest = split_auxiliary(load_final(run_dir.final(j), network.learner(j)), keys)
        tensors |= own
        if exits:
            head = without_prefix(rest, HEAD)
            tensors |= {f"{EXITS}{j}.{key}": value for key, value in head.items()}
    try:
        save(output, tensors)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"output: got {output}; cannot write: {reason}") from error
    return len(tensors)


def _refuse_exits(keys: Iterable[str]) -> None:
    own = sorted(key for key in keys if key.startswith(EXITS))
    if own:
        allowed = f"false for a network whose own keys begin with {EXITS!r}"
        raise ConfigError("exits", True, allowed, f"The network has {own[0]}")


def _open(path: Path, meta: bool = False) -> tuple[StagedNetwork, RunDir]:
    run_dir = RunDir(path)
    config = run_dir.finished_config()
    data = _description(run_dir.manifest)
    method, stages = build_method(config.method), config.pipeline.stages or 1
    return build_staged_network(config, method, data, stages, meta=meta), run_dir


def _description(manifest: Path) -> DataInfo:
    """Properties of the training data set, from the manifest."""
    try:
        known = json.loads(manifest.read_text())["data"]
        data = DataInfo(**{**known, "classes": tuple(known["classes"])})
    except KeyError as error:
        raise RunDirError.damaged(manifest, f"no key {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise RunDirError.damaged(manifest, error) from error
    sizes = (data.channels, data.height, data.width)
    if not all(type(size) is int and size > 0 for size in sizes):
        raise RunDirError.damaged(manifest, f"images of shape {sizes}")
    return data
