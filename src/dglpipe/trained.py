"""A trained network with its exits, from a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dglpipe.blueprint import Blueprint, draw
from dglpipe.data import DataDescription
from dglpipe.errors import ConfigError, RunDirError
from dglpipe.rundir import RunDir
from dglpipe.stage import LocalLearner, admit
from dglpipe.weights import apart, load, load_tensors, save

EXITS = "exits."


class Trained(nn.Module):
    """All stages of a run, in evaluation mode: logits from any exit.

    Attributes:
        stages: `LocalLearner`s in order, with segments and head each.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.stages = nn.ModuleList(blueprint.learner(j) for j in range(len(blueprint.modules)))
        self._precisions = [blueprint.precision(j) for j in range(len(self.stages))]

    def forward(self, batch: Tensor, exit: int | None = None) -> Tensor:
        """Logits (B, N) of `batch` (B, C, H, W), normalised as in training.

        Args:
            exit: j; the stages above it are not run. None: the last, the network itself.

        Raises:
            ConfigError: there is no such exit.
        """
        count = len(self.stages)
        end = count - 1 if exit is None else exit
        known = type(end) is int and 0 <= end < count
        if not known or not self._learner(end).is_exit:
            there = [j for j in range(count) if self._learner(j).is_exit]
            raise ConfigError("exit", exit, f"one of {there}")
        for j in range(end):
            batch = self._learner(j).segments(self._admit(j, batch))
        logits: Tensor = self._learner(end)(self._admit(end, batch), None)
        return logits

    def exits(self, batch: Tensor) -> list[Tensor | None]:
        """Logits (B, N) of every stage, in one pass; None of a stage that has no exit."""
        logits: list[Tensor | None] = []
        for j in range(len(self.stages)):
            learner = self._learner(j)
            batch = learner.segments(self._admit(j, batch))
            if learner.is_exit:
                logits.append(batch if learner.head is None else learner.head(batch))
            else:
                logits.append(None)
        return logits

    def _learner(self, j: int) -> LocalLearner:
        return cast(LocalLearner, self.stages[j])

    def _admit(self, j: int, batch: Tensor) -> Tensor:
        return admit(batch, self._precisions[j])

    def ensemble(self, batch: Tensor) -> Tensor:
        """Mean of the softmax (B, N) of all exits, weighted 2^j (the paper's section 4.2)."""
        found = [(2.0**j, one) for j, one in enumerate(self.exits(batch)) if one is not None]
        parts = [weight * torch.softmax(one.float(), dim=1) for weight, one in found]
        return torch.stack(parts).sum(dim=0) / sum(weight for weight, _ in found)


def load_run(path: Path) -> Trained:
    """The network of a finished run with its final weights, on the CPU, in evaluation mode.

    Raises:
        RunDirError: `path` is not the directory of a finished run.
    """
    blueprint, run_dir = _open(path)
    trained = Trained(blueprint)
    for j, stage in enumerate(trained.stages):
        load_tensors(cast(LocalLearner, stage), _weights(run_dir, j))
    return trained.eval()


def export_run(path: Path, output: Path, exits: bool = False) -> int:
    """Writes the trained network as safetensors under its own `state_dict` keys.

    Args:
        exits: the heads too, under `exits.<j>.` + key.

    Returns:
        How many tensors were written.

    Raises:
        RunDirError: `path` is not the directory of a finished run.
    """
    blueprint, run_dir = _open(path, meta=True)
    tensors: dict[str, Tensor] = {}
    for j, module in enumerate(blueprint.modules):
        own, head = apart(_weights(run_dir, j), set(module.state_dict()))
        tensors |= own
        if exits:
            tensors |= {f"{EXITS}{j}.{key}": value for key, value in head.items()}
    save(output, tensors)
    return len(tensors)


def _open(path: Path, meta: bool = False) -> tuple[Blueprint, RunDir]:
    run_dir = RunDir(path)
    config = run_dir.finished_config()
    try:
        known = json.loads(run_dir.manifest.read_text())["data"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(run_dir.manifest, error) from error
    data = DataDescription(**{**known, "classes": tuple(known["classes"])})
    return draw(config, data, config.pipeline.stages or 1, meta=meta), run_dir


def _weights(run_dir: RunDir, j: int) -> dict[str, Tensor]:
    path = run_dir.final(j)
    try:
        return load(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunDirError:
    return RunDirError(f"run: {path} cannot be read ({error}); the run has lost its results")
