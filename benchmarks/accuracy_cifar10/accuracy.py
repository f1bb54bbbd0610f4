"""Accuracy on CIFAR-10 (JPEG): stages, heads, sequential training, alternatives, asynchrony.

    DGLPIPE_CIFAR10=DIR python benchmarks/accuracy_cifar10/accuracy.py

DIR has `train/<class>/*.jpg` and `test/<class>/*.jpg`. Makes the runs of `studies.py` that are not
in the result file, several at a time, one core each. It can be stopped at any time: finished runs
are in the result file, and others go on from their last checkpoint in the folder `--work`.
`--tables` prints the tables of README.md from the result file, `--write` writes them there. An
accuracy is that of the last epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.accuracy_cifar10.studies import MEASURED, SEEDS, Run, next_runs, settings
from benchmarks.common import interval, log
from benchmarks.memory.crossings import MIB

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
STEPS = RESULTS.with_name("imagenet_steps.json")
PICTURE = RESULTS.with_name("stages.png")
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
FOLDER = "DGLPIPE_CIFAR10"
FAST_BF16 = ("avx512_bf16", "amx_bf16")


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


def log_of(folder: Path) -> Path:
    """The output of the run in `folder`, whose name may have a point."""
    return folder.with_name(f"{folder.name}.log")


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


class Workers:
    """Makes the missing runs, `count` at a time."""

    def __init__(self, results: Results, work: Path, words: Sequence[str], count: int) -> None:
        self._results, self._work, self._words = results, work, words
        self._count = count
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._commands: set[subprocess.Popen[bytes]] = set()
        self.failed: list[str] = []
        self._stops = threading.Event()

    def run(self) -> None:
        """Returns when no run is missing, or `stop` was called."""
        threads = [threading.Thread(target=self._work_off) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Ends the runs in progress after a checkpoint."""
        self._stops.set()
        for command in list(self._commands):
            command.terminate()

    def _work_off(self) -> None:
        while not self._stops.is_set():
            with self._lock:
                missing = next_runs(self._results.done())
                run = next((one for one in missing if one.key not in self._taken), None)
                if run is None:
                    waiting = bool(missing) and bool(self._commands)
                else:
                    self._taken.add(run.key)
            if run is not None:
                self._train(run)
            elif not waiting or self._stops.wait(1):  # tuning runs of other threads are missing
                return

    def _train(self, run: Run) -> None:
        folder = self._work / run.key.replace("/", "_").replace(" ", "_")
        real = "method=dgl_async" in run.words and "method.simulate=true" not in run.words
        own = [] if real else ["pipeline.processes=1"]
        words = [*run.words, *own, *self._words, f"run_dir={folder}"]
        with log_of(folder).open("ab") as output:
            command = subprocess.Popen(
                [sys.executable, "-m", "dglpipe", "train", *words], stdout=output, stderr=output
            )
            self._commands.add(command)
            status = command.wait()
            self._commands.discard(command)
        if status == 0:
            self._results.add(run, folder)
            log(f"{run.key}: {self._results.runs[run.key]['exits']}")
        elif not self._stops.is_set():
            self.failed.append(run.key)
            log(f"{run.key}: status {status}, see {log_of(folder)}")


def precision() -> str:
    """bf16 on processors that compute with it; fp32 on others, where it is slower."""
    flags = common.CPUS.read_text() if common.CPUS.exists() else ""
    return "bf16" if any(flag in flags for flag in FAST_BF16) else "fp32"


def main() -> None:
    arguments = parse()
    if arguments.tables or arguments.write:
        stored = Results(arguments.output)
        text = tables(stored)
        if arguments.write:
            if stored.runs:
                draw(stored, PICTURE)
            before, _, rest = README.read_text().partition(BEGIN)
            README.write_text(before + BEGIN + text + END + rest.partition(END)[2])
        log(text)
        return
    root = os.environ.get(FOLDER)
    if not root:
        sys.exit(f"{FOLDER} is not set: give it the folder with train/ and test/")
    arguments.work.mkdir(parents=True, exist_ok=True)
    common.prepare(str(arguments.output))
    words = [
        *("data=image_folder", f"data.root={root}", "data.image_size=32", "evaluate.every=0"),
        *("pipeline.threads=1", f"precision={precision()}", "checkpoint.every=391"),
        *("checkpoint.keep=1", "resume=auto", *arguments.overrides),
    ]
    workers = Workers(Results(arguments.output), arguments.work, words, arguments.at_once)
    with stopping(workers):
        workers.run()
    sys.exit(1 if workers.failed else 0)


@contextlib.contextmanager
def stopping(workers: Workers) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM end the runs after a checkpoint."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: workers.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy_cifar10"))
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--tables", action="store_true", help="print the tables, train nothing")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    return parser.parse_args(words)


def tables(results: Results) -> str:
    """A table of every study: the exits and the ensemble in percent, mean and range over seeds."""
    lines: list[str] = []
    known = settings()
    for study in dict.fromkeys(setting.study for setting in known):
        rows = [
            row(setting.name, runs, work_of_backprop(results, study))
            for setting in known
            if setting.study == study and (runs := runs_of(results, study, setting.name))
        ]
        if rows:
            head = [f"| {study} | seeds | work | exits | ensemble |", "|---|---|---|---|---|"]
            lines += [*head, *rows, ""]
    lines = lines or ["No accuracy is stored yet.", ""]
    if STEPS.exists():
        lines += [*steps_table(json.loads(STEPS.read_text())["rows"]), ""]
    measured = results.runs.get(f"stages/{MEASURED}/{SEEDS[0]}", {}).get("convergence")
    if measured:
        lines += convergence_table(measured)
    return "\n".join(lines)


def draw(results: Results, picture: Path) -> None:
    """Draws the accuracy of the last exit over the number of stages, by head, beside backprop."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    single = [100 * run["exits"][-1] for run in runs_of(results, "stages", "backprop")]
    for head in ("mlp_sr", "cnn_sr"):
        points = [(1, single)] if single else []
        for stages in (2, 3, 6):
            runs = runs_of(results, "stages", f"{head} K={stages}")
            if runs:
                points.append((stages, [100 * run["exits"][-1] for run in runs]))
        middle = [mean(values) for _, values in points]
        ends = [
            [at - min(values) for at, (_, values) in zip(middle, points, strict=True)],
            [max(values) - at for at, (_, values) in zip(middle, points, strict=True)],
        ]
        axes.errorbar([k for k, _ in points], middle, ends, marker="o", capsize=3, label=head)
    axes.set_xticks([1, 2, 3, 6], ["1 (backprop)", "2", "3", "6"])
    axes.set_xlabel("stages")
    axes.set_ylabel("test accuracy of the last exit, %")
    axes.legend()
    figure.savefig(picture, dpi=110)


def steps_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A row for every experiment of `imagenet_steps.py`; values by stage."""
    lines = ["| experiment, steps | loss, first ten | last ten | MiB, planned | measured |"]
    lines.append("|---|---|---|---|---|")
    for one in rows:
        losses = (", ".join(f"{x:.2f}" for x in one[key]) for key in ("first_loss", "last_loss"))
        sizes = (
            ", ".join(f"{x / MIB:.0f}" for x in one[key])
            for key in ("planned_bytes", "measured_bytes")
        )
        lines.append(f"| {one['experiment']}, {one['steps']} | {' | '.join((*losses, *sizes))} |")
    return lines


def convergence_table(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """Rows of the first and the last epoch by stage, of one seed."""
    head = f"| {MEASURED}, mean of an epoch | gradient norm, first, last | drift, first, last |"
    rows = []
    for stage, norms in measured["gradient_norm"].items():
        drifts = measured["drift"][stage]
        ends = (f"{one[0]:.3f}, {one[-1]:.3f}" for one in (norms, drifts))
        rows.append(f"| stage {stage} | {' | '.join(ends)} |")
    return [
        head,
        "|---|---|---|",
        *rows,
        "",
        "![Convergence by stage](results/convergence.png)",
        "",
    ]


def written() -> str:
    """The tables in README.md."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def runs_of(results: Results, study: str, name: str) -> list[dict[str, Any]]:
    prefix = f"{study}/{name}/"
    return [run for key, run in results.runs.items() if key.startswith(prefix)]


def work_of_backprop(results: Results, study: str) -> float | None:
    """FLOPs per sample of backprop on the network of `study`; None if it has not run. The steps of
    sequential training are of different size."""
    if study == "sequential":
        return None
    name = "alternatives: backprop" if study == "alternatives" else "backprop"
    runs = runs_of(results, study if study == "alternatives" else "stages", name)
    return runs[0]["flops_per_sample"] if runs else None


def row(name: str, runs: Sequence[dict[str, Any]], backprop: float | None) -> str:
    exits = [
        share([run["exits"][at] for run in runs])
        for at in range(len(runs[0]["exits"]))
        if runs[0]["exits"][at] is not None
    ]
    ensemble = share([run["ensemble"] for run in runs])
    work = f"{runs[0]['flops_per_sample'] / backprop:.2f}" if backprop else "-"
    return f"| {name} | {len(runs)} | {work} | {', '.join(exits)} | {ensemble} |"


def share(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return interval(mean(percent), min(percent), max(percent), 1)


if __name__ == "__main__":
    main()
