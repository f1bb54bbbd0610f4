"""How near two processes come to the best that their stages allow.

    python benchmarks/throughput/throughput.py --repeats 5 --output FILE.json

Runs, in turn and repeated: the chain on P = 2 and on P = 1 through `dglpipe train`, each of
its stages alone and fed from memory, and a plain loop outside the package; one thread a
process. Prints medians, spread and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import dglpipe

HERE = Path(__file__).parent
PARTS = HERE / "parts.py"


def main() -> None:
    arguments = parse()
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "rows": [measure(arguments, precision) for precision in arguments.precision],
    }
    for row in result["rows"]:
        sys.stdout.write(table(row) + "\n")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--output", help="JSON file of the results")
    return parser.parse_args()


def overrides(arguments: argparse.Namespace, precision: str) -> list[str]:
    """The work: cnn6, synthetic 3x32x32 images, two stages of three segments."""
    return [
        "model=cnn6",
        f"model.width={arguments.width}",
        "data=synthetic",
        f"data.samples={arguments.batch * arguments.steps}",
        f"batch_size={arguments.batch}",
        f"max_steps={arguments.steps}",
        "epochs=1",
        "evaluate.every=0",
        "pipeline.stages=2",
        "pipeline.split=[3]",
        "pipeline.threads=1",
        f"precision={precision}",
    ]


def measure(arguments: argparse.Namespace, precision: str) -> dict[str, object]:
    """Samples a second of each way, `repeats` times in turn."""
    work = overrides(arguments, precision)
    ways: dict[str, Callable[[], float]] = {
        "P=2": lambda: train(work, 2),
        "P=1": lambda: train(work, 1),
        "loop": lambda: part(["loop", *work]),
        "stage 0": lambda: part(["stage", "0", *work]),
        "stage 1": lambda: part(["stage", "1", *work]),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, run in ways.items():
            samples[name].append(run())
    return {
        "precision": precision,
        "load_average": os.getloadavg()[0],
        "samples_per_second": samples,
        "ratios": ratios(samples),
    }


def ratios(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """Ratios, round by round, so that a drift of the machine cancels."""
    rounds = [
        dict(zip(samples, values, strict=True)) for values in zip(*samples.values(), strict=True)
    ]
    slowest = [min(one["stage 0"], one["stage 1"]) for one in rounds]
    both = [1 / (1 / one["stage 0"] + 1 / one["stage 1"]) for one in rounds]
    return {
        "P=2 / slower stage alone": [a["P=2"] / b for a, b in zip(rounds, slowest, strict=True)],
        "P=2 / P=1": [one["P=2"] / one["P=1"] for one in rounds],
        "its bound: sum of the stages / slower": [
            a / b for a, b in zip(slowest, both, strict=True)
        ],
        "P=1 / plain loop": [one["P=1"] / one["loop"] for one in rounds],
    }


def train(work: list[str], processes: int) -> float:
    """Samples a second as `summary.json` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "dglpipe", "train", *work]
        command += [f"pipeline.processes={processes}", f"run_dir={run_dir}"]
        subprocess.run(command, check=True, capture_output=True)
        summary = json.loads((run_dir / "summary.json").read_text())
    return float(summary["throughput"]["samples_per_second"])


def part(words: list[str]) -> float:
    command = [sys.executable, str(PARTS), *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def environment() -> dict[str, object]:
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if "model name" in ln), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dglpipe": dglpipe.__version__,
    }


def table(row: dict[str, object]) -> str:
    """Medians with minimum and maximum."""
    lines = [f"{row['precision']}, load average at the end {row['load_average']:.2f}"]
    for group in ("samples_per_second", "ratios"):
        for name, values in row[group].items():  # type: ignore[attr-defined]
            low, high = min(values), max(values)
            lines.append(f"  {name:40} {median(values):9.3f}   {low:.3f} .. {high:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
