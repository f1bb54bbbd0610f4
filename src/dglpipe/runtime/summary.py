"""The content of `summary.json`."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dglpipe
from dglpipe.config import to_yaml
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring.metrics import ENSEMBLE, AnyLine, Line
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.topology import Layout

FILE = "file"
"""Key of a final report: the entry of the file of final weights; not part of the summary."""
DECODERS = "decoders"
"""Key of a final report: number of processes that decode images; not part of the summary."""
CONFIG_SHA256 = "config_sha256"
"""Key of `final/manifest.json`: SHA-256 of `config.yaml`."""


class Summary:
    """Gathers the last test lines and the final reports of all processes."""

    def __init__(self, plan: RunPlan, device: Device) -> None:
        self._plan = plan
        self._layout = plan.layout
        self._device = device
        self._tests: dict[int | str, Line] = {}

    def line(self, line: AnyLine) -> None:
        """Keeps the newest test line of every exit."""
        if isinstance(line, Line) and line.kind == "test":
            self._tests[line.stage] = line

    def close(self) -> None:
        """Does nothing: no resource is open."""

    def test(self) -> dict[str, Any]:
        """The `test` part of the summary: exits in the order of the stages."""
        lines = [self._tests.get(j) for j in range(self._layout.stages)]
        ensemble = self._tests.get(ENSEMBLE)
        return {
            "accuracy": [line.accuracy if line else None for line in lines],
            "ensemble_accuracy": ensemble.accuracy if ensemble else None,
            "loss": [line.loss if line else None for line in lines],
        }

    def finished(self, finals: Sequence[dict[str, Any]], wall_seconds: float) -> dict[str, Any]:
        """The content of `summary.json` for a finished run.

        Args:
            finals: the final reports of all processes, by rank.
        """
        layout = self._layout
        last = [finals[rank] for rank in range(layout.world_size) if layout.at(rank).is_last]
        rates = [final["samples_per_second"] for final in last]
        stages = _per_stage(finals, layout)
        buffers = [stage.get("staleness") for stage in stages]
        return {
            **header("finished", self._plan),
            "device": self._device.torch_device.type,
            "backend": self._device.backend,
            "steps": self._plan.schedule.steps,
            "wall_seconds": wall_seconds,
            "test": self.test(),
            "throughput": {"samples_per_second": None if None in rates else sum(rates)},
            "per_stage": [
                {key: value for key, value in stage.items() if key not in ("staleness", FILE)}
                for stage in stages
            ],
            "staleness": buffers if any(buffers) else None,
        }

    def manifest(self, finals: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The content of `final/manifest.json`: files of the stages, SHA-256 of the configuration,
        and the data set."""
        keys = ("stage", "segments", "weights_sha256")
        stages = _per_stage(finals, self._layout)
        return {
            "dglpipe": dglpipe.__version__,
            "step": self._plan.schedule.steps,
            CONFIG_SHA256: hashlib.sha256(to_yaml(self._plan.config).encode()).hexdigest(),
            "data": asdict(self._plan.data),
            "stages": [{**stage[FILE], **{key: stage[key] for key in keys}} for stage in stages],
        }


def unfinished(status: str, plan: RunPlan) -> dict[str, Any]:
    """The content of `summary.json` for a run that did not finish: the same keys, with nulls."""
    nothing = [None] * plan.layout.stages
    return {
        **header(status, plan),
        "backend": plan.backend,
        "test": {"accuracy": nothing, "ensemble_accuracy": None, "loss": nothing},
        "throughput": {"samples_per_second": None},
        "per_stage": [],
        "staleness": None,
    }


def header(status: str, plan: RunPlan) -> dict[str, Any]:
    """The part of the summary that is known before the run starts."""
    config, layout = plan.config, plan.layout
    return {
        "status": status,
        "method": config.method.name,
        "stages": layout.stages,
        "processes": layout.processes,
        "replicas": layout.replicas,
        "backend": config.pipeline.backend,
        "device": None,
        "precision": config.precision.name,
        "epochs": config.epochs,
        "steps": None,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "wall_seconds": None,
        "versions": {
            "dglpipe": dglpipe.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """The commit of the source tree, with `-dirty` if modified; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _per_stage(finals: Sequence[dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    """The entries of replica 0, in the order of the stages."""
    first = [finals[rank] for rank in range(layout.world_size) if layout.at(rank).replica == 0]
    return sorted((stage for final in first for stage in final["stages"]), key=lambda s: s["stage"])
