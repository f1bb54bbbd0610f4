"""The finished runs of the accuracy study, in a file."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import common
from benchmarks.accuracy_cifar10.studies import MEASURED, SEEDS, Run

RESULTS = Path(__file__).parent / "results" / "accuracy.json"


class Results:
    """The finished runs, in a file.

    Attributes:
        runs: key -> accuracy of every exit, and of the ensemble; words; precision; processor;
            convergence.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.runs: dict[str, dict[str, Any]] = {}
        if file.exists():
            self.runs = json.loads(file.read_text())["runs"]

    def done(self) -> dict[str, float]:
        """Key of a run -> accuracy of its last exit."""
        return {key: run["exits"][-1] for key, run in self.runs.items()}

    def add(self, run: Run, folder: Path) -> None:
        """Stores the finished run in `folder`."""
        summary = json.loads((folder / "summary.json").read_text())
        test = summary["test"]
        probes = probe_lines(folder / "metrics.jsonl")
        if probes and run.key == f"stages/{MEASURED}/{SEEDS[0]}":
            shutil.copy(folder / "convergence.png", self._file.parent)
        with self._lock:
            self.runs[run.key] = {
                **({"convergence": probes} if probes else {}),
                "seed": run.seed,
                "exits": test["accuracy"],
                "ensemble": test["ensemble_accuracy"],
                "flops_per_sample": sum(one["flops_per_sample"] for one in summary["per_stage"]),
                "words": [word for word in run.words if not word.startswith("data.root=")],
                "precision": summary["precision"],
                "processor": common.environment()["processor"],
            }
            common.store(str(self._file), runs=self.runs)


def runs_of(results: Results, study: str, name: str) -> list[dict[str, Any]]:
    prefix = f"{study}/{name}/"
    return [run for key, run in results.runs.items() if key.startswith(prefix)]


def probe_lines(metrics: Path) -> dict[str, dict[str, list[float]]]:
    """`gradient_norm` and `drift` -> stage -> mean of every epoch."""
    lines = [json.loads(text) for text in metrics.read_text().splitlines()]
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("gradient_norm", "drift"):
        epochs: dict[tuple[str, int], list[float]] = {}
        for line in lines:
            if line["kind"] == "probe" and line[name] is not None:
                epochs.setdefault((str(line["stage"]), line["epoch"]), []).append(line[name])
        for (stage, _), values in sorted(epochs.items()):
            found.setdefault(name, {}).setdefault(stage, []).append(mean(values))
    return found
