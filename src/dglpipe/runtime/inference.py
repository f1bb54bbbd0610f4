"""A trained network with its exits, from a run directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import dglpipe
from dglpipe.config.checks import whole
from dglpipe.errors import ConfigError, StorageError, UserError
from dglpipe.files import writing
from dglpipe.manifest import beside, write_manifest
from dglpipe.methods.registry import build_run_method
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.stage_module import HEAD, StageModule, cast_input
from dglpipe.pipeline.weights import load_tensors, save, split_auxiliary, without_prefix
from dglpipe.runtime.finished_run import FinishedRun
from dglpipe.runtime.trust_words import Words

EXITS = "exits."


class TrainedNetwork(nn.Module):
    """All stages of a run, in evaluation mode: logits from any exit.

    Attributes:
        stages: one `StageModule` per stage, in order, with segments and auxiliary modules.
        channels_at: for each stage but the last, the dimension of a row of its output that holds
            the channels.

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
        self.channels_at = network.spec.channels_at
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
            stage = self._stage(j)
            batch = stage.output(stage.features(self._cast(j, batch)))
        logits: Tensor = self._stage(end)(self._cast(end, batch), None)
        return logits

    def exits(self, batch: Tensor) -> list[Tensor | None]:
        """Logits (B, N) of every stage, in one pass; None for a stage without an exit."""
        logits: list[Tensor | None] = []
        for j in range(len(self.stages)):
            stage = self._stage(j)
            features = stage.features(self._cast(j, batch))
            logits.append(stage.logits(features) if stage.is_exit else None)
            batch = stage.output(features)
        return logits

    def outputs(self, batch: Tensor) -> list[Tensor]:
        """Output (B, ...) of every stage, in one pass; the last are logits."""
        outputs: list[Tensor] = []
        for j in range(len(self.stages)):
            stage = self._stage(j)
            batch = stage.output(stage.features(self._cast(j, batch)))
            outputs.append(batch)
        return outputs

    def _stage(self, j: int) -> StageModule:
        return cast(StageModule, self.stages[j])

    def _cast(self, j: int, batch: Tensor) -> Tensor:
        return cast_input(batch, self._precisions[j])

    def ensemble(self, batch: Tensor) -> Tensor:
        """Mean of the softmax (B, N) of all exits, weighted 2^j (the paper's section 4.2)."""
        found = [(2.0**j, one) for j, one in enumerate(self.exits(batch)) if one is not None]
        parts = [weight * torch.softmax(one.float(), dim=1) for weight, one in found]
        return torch.stack(parts).sum(dim=0) / sum(weight for weight, _ in found)


def load_run(path: Path, trust: Words = ()) -> TrainedNetwork:
    """The network of a finished run with its final weights, on the CPU, in evaluation mode.

    Args:
        trust: names and files of the plug-ins that may be imported.

    Raises:
        RunDirError: `path` is not the directory of a finished run, a file is damaged, or
            the run names a plug-in that may not be imported.
    """
    run = FinishedRun.open(path, trust)
    trained = TrainedNetwork(_build(run))
    for j, stage in enumerate(trained.stages):
        module = cast(StageModule, stage)
        load_tensors(module, run.weights(j, module))
    return trained.eval()


def export_run(path: Path, output: Path, exits: bool = False, trust: Words = ()) -> int:
    """Writes the trained network as safetensors under its own `state_dict` keys, and beside it
    `FILE.manifest.json` with size and SHA-256.

    Args:
        exits: also write the heads, under `exits.<j>.` + key.
        trust: names and files of the plug-ins that may be imported.

    Returns:
        The number of tensors written.

    Raises:
        RunDirError: `path` is not the directory of a finished run, a file is damaged, or
            the run names a plug-in that may not be imported.
        UserError: the file cannot be written or is in the run's `final/`; the network has keys
            that begin with `exits.`.
    """
    run = FinishedRun.open(path, trust)
    folder = path / "final"
    if output.resolve().is_relative_to(folder.resolve()):
        hint = "This folder contains the weights of the run"
        raise ConfigError("output", str(output), f"a file outside of {folder}", hint)
    network, tensors = _build(run, meta=True), dict[str, Tensor]()
    for j, module in enumerate(network.modules):
        keys = set(module.state_dict())
        if exits:
            _refuse_exits(keys)
        own, rest = split_auxiliary(run.weights(j, network.learner(j)), keys)
        tensors |= own
        if exits:
            head = without_prefix(rest, HEAD)
            tensors |= {f"{EXITS}{j}.{key}": value for key, value in head.items()}
    try:
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        entry = save(output, tensors)
        write_manifest(beside(output), {"dglpipe": dglpipe.__version__, "files": [entry.to_json()]})
    except StorageError as error:
        raise UserError(f"output: got {output}; cannot write: {error}") from error
    return len(tensors)


def _refuse_exits(keys: Iterable[str]) -> None:
    own = sorted(key for key in keys if key.startswith(EXITS))
    if own:
        allowed = f"false for a network whose own keys begin with {EXITS!r}"
        raise ConfigError("exits", True, allowed, f"The network has {own[0]}")


def _build(run: FinishedRun, meta: bool = False) -> StagedNetwork:
    config = run.config
    stages = config.pipeline.stages or 1
    method = build_run_method(config, stages, run.data)
    return build_staged_network(config, method, run.data, stages, meta=meta)
