"""Checkpoints. A killed run that resumes ends with the same weights as an uninterrupted run.

    checkpoints/step_00000100/stage_0.pt  stage_1.pt  ...

Each stage writes its own file after the step and does not wait for other stages. A checkpoint is
complete when the files of all stages and replicas exist. Random state and learning rate are
functions of the step, and the batch schedule is a function of the configuration, so a file contains
only weights, optimizer and loss scaler. A simulation of asynchronous learning adds its buffers.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dglpipe.config import Config
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.topology import Layout

PREFIX = "step_"


class Checkpoints:
    """Reads and writes the checkpoint files of the stages of one process.

    Args:
        path: the folder of all checkpoints.
        replica: r. Each replica saves its own state, because batch norm statistics differ.
    """

    def __init__(self, path: Path, config: Config, layout: Layout, replica: int) -> None:
        self._path = path
        self._config = config
        self._layout = layout
        self._replica = replica

    def save(
        self, step: int, stages: Sequence[Stage], more: Mapping[int, Any] | None = None
    ) -> None:
        """Writes the state of `stages` after `step`, then deletes the checkpoints older than the
        last `checkpoint.keep` complete ones.

        Args:
            more: further state by stage index: tensors, numbers, dicts and lists.
        """
        for stage in stages:
            path = self._file(step, stage.index, self._replica)
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            state = {
                "learner": stage.module.state_dict(),
                "optimizer": stage.optimizer.state_dict(),
                "scaler": stage.scaler.state_dict() if stage.scaler is not None else None,
            }
            if more is not None:
                state["more"] = more[stage.index]
            torch.save(state, buffer)
            part = path.with_name(f".{path.name}")
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        kept = self._complete()[-self._config.checkpoint.keep :]
        for folder in self._path.glob(f"{PREFIX}*"):
            if kept and int(folder.name[len(PREFIX) :]) < kept[0]:
                shutil.rmtree(folder, ignore_errors=True)

    def newest(self) -> int:
        """Step of the newest complete checkpoint; 0 if there is none or resume=never."""
        steps = self._complete() if self._config.resume == "auto" else []
        return steps[-1] if steps else 0

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`, which a killed run left incomplete. Their old files
        would make a new checkpoint look complete before every stage has written its own file."""
        for folder in self._path.glob(f"{PREFIX}*"):
            if int(folder.name[len(PREFIX) :]) > step:
                shutil.rmtree(folder)

    def restore(self, step: int, stages: Sequence[Stage]) -> dict[int, Any]:
        """Loads the state of `stages` after `step`; returns the further state of each stage."""
        more = {}
        for stage in stages:
            file = self._file(step, stage.index, self._replica)
            state = torch.load(file, map_location="cpu", weights_only=True)
            stage.module.load_state_dict(state["learner"], strict=True)
            stage.optimizer.load_state_dict(state["optimizer"])
            if stage.scaler is not None:
                stage.scaler.load_state_dict(state["scaler"])
            more[stage.index] = state.get("more")
        return more

    def _file(self, step: int, stage: int, replica: int) -> Path:
        name = f"stage_{stage}.pt" if self._layout.replicas == 1 else f"stage_{stage}_{replica}.pt"
        return self._path / f"{PREFIX}{step:08d}" / name

    def _complete(self) -> list[int]:
        """Steps of the complete checkpoints, in ascending order."""
        steps = sorted(int(item.name[len(PREFIX) :]) for item in self._path.glob(f"{PREFIX}*"))
        layout = self._layout
        parts = list(itertools.product(range(layout.stages), range(layout.replicas)))
        return [step for step in steps if all(self._file(step, *one).exists() for one in parts)]
