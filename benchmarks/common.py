"""Shared parts of the benchmarks: training runs, alternating rounds, ratios, result files."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import dglpipe
from dglpipe.files import finite, write_whole
from dglpipe.host import cores

HERE = Path(__file__).parent
CPUS = Path("/proc/cpuinfo")
LINE_WIDTH = 100
UNDERPERFORMS = 0.9
"""A baseline below this share of its own bound gives no ratio."""
MARK = "baseline underperforms"

T = TypeVar("T")


# ---------------------------------------------------------------- training runs


@dataclass(frozen=True)
class Training:
    """Files of a finished run: `summary.json`, lines of `metrics.jsonl`, spans of the timeline."""

    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    """In the trace format of Chrome; empty without `timeline=true`."""

    @property
    def samples_per_second(self) -> float:
        return float(self.summary["throughput"]["samples_per_second"])

    @property
    def peak_memory(self) -> list[int]:
        """Bytes of the process of each stage."""
        return [int(stage["peak_memory_bytes"]) for stage in self.summary["per_stage"]]

    @property
    def accuracy(self) -> list[float]:
        """Test accuracy of each exit after the last epoch."""
        return list(self.summary["test"]["accuracy"])


def train(words: Iterable[str]) -> Training:
    """Runs `dglpipe train` with these overrides in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        dglpipe_command("train", *words, f"run_dir={run_dir}")
        summary = json.loads((run_dir / "summary.json").read_text())
        metrics = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        timeline = run_dir / "timeline.json"
        events = json.loads(timeline.read_text())["traceEvents"] if timeline.exists() else []
        return Training(summary, list(metrics), [one for one in events if one["ph"] == "X"])


def dglpipe_command(*words: str) -> str:
    """Runs `dglpipe WORDS` and returns its stdout."""
    return run([sys.executable, "-m", "dglpipe", *words])


def run(command: Sequence[str]) -> str:
    """Stdout of a command.

    Raises:
        RuntimeError: the command failed; with the command and its stderr.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: status {done.returncode}\n{done.stderr}")
    return done.stdout


# ---------------------------------------------------------------- rounds and ratios


def rounds(
    ways: Mapping[str, Callable[[], T]], count: int, rotate: bool = True
) -> dict[str, list[T]]:
    """Results of every way, `count` times, the ways alternating.

    Args:
        rotate: each round starts with the next way, so that none always runs first.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(count):
        first = number % len(names) if rotate else 0
        for name in names[first:] + names[:first]:
            results[name].append(ways[name]())
    return results


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ratios round by round, so that a drift of the machine cancels."""
    return [a / b for a, b in zip(one, other, strict=True)]


def reaches_bound(shares: Sequence[float]) -> bool:
    """Whether a baseline is good enough to compare with, by its shares of its own bound."""
    return median(shares) >= UNDERPERFORMS


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median with minimum and maximum."""
    numbers = sorted(values)
    return interval(median(numbers), numbers[0], numbers[-1], digits)


def interval(middle: float, low: float, high: float, digits: int = 2) -> str:
    """A middle value with its range."""
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


# ---------------------------------------------------------------- command line and results


def parser_of(documentation: str | None) -> argparse.ArgumentParser:
    """Parser with `--output`; the first line of the script's docstring describes it."""
    parser = argparse.ArgumentParser(description=(documentation or "").splitlines()[0])
    parser.add_argument("--output", help="JSON file of the results")
    return parser


def log(*lines: str) -> None:
    """Prints lines at once: a benchmark may run for hours."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def prepare(*outputs: str | None) -> None:
    """Creates the folders of the outputs, so that a wrong path fails before hours of measuring."""
    for output in filter(None, outputs):
        Path(output).parent.mkdir(parents=True, exist_ok=True)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def store(output: str | None, **results: Any) -> None:
    """Writes results with command and environment as JSON, atomically; None: writes nothing."""
    if output is not None:
        command = shlex.join(["python", *sys.argv])
        tree = {"command": command, "environment": environment(), **results}
        write_whole(Path(output), to_json(tree) + "\n")


def load(name: str) -> Any:
    """The result file `benchmarks/FOLDER/results/FILE.json`, by its name `FOLDER/FILE`."""
    folder, _, file = name.partition("/")
    return json.loads((HERE / folder / "results" / f"{file}.json").read_text())


def to_json(value: Any) -> str:
    """JSON in few lines: an innermost list or object takes one; short entries share a line."""
    return _to_json(json.loads(json.dumps(finite(value))), "")


def _to_json(value: Any, indent: str) -> str:
    flat = json.dumps(value)
    is_object = isinstance(value, dict)
    items = value.values() if is_object else value if isinstance(value, list) else ()
    nested = any(isinstance(item, dict | list) for item in items)
    if not nested or len(indent + flat) <= LINE_WIDTH:
        return flat
    deeper = indent + "  "
    lines: list[str] = []
    for at, item in enumerate(items):
        text = _to_json(item, deeper)
        if is_object:
            text = f"{json.dumps(list(value)[at])}: {text}"
            if lines and len(f"{deeper}{lines[-1]}, {text}") < LINE_WIDTH:
                text = f"{lines.pop()}, {text}"
        lines.append(text)
    left, right = "{}" if is_object else "[]"
    body = f",\n{deeper}".join(lines)
    return f"{left}\n{deeper}{body}\n{indent}{right}"


def environment() -> dict[str, Any]:
    """Processor, devices and versions."""
    import torch  # `figures.py` does not need it

    lines = CPUS.read_text().splitlines() if CPUS.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    flags = fields.get("flags", fields.get("Features", ""))  # on x86; on Arm
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": cores(),
        "devices": [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": [flag for flag in flags.split() if "bf16" in flag],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dglpipe": dglpipe.__version__,
    }
