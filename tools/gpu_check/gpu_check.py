"""Runs the CUDA path on this machine's GPUs and writes a report: `make gpu-check`.

    parity      the weights of P = 1 and of P = K are equal, bit for bit
    no_waiting  no step makes the host wait for the device
    soak        1,000 batches in memory that does not grow
    kill        a worker is killed: all others are gone in 10 s, and the cause is reported
    throughput  samples per second of P = 1 and of P = K

Exit status: 0 all passed, 1 a check failed, 2 no CUDA device. `--rehearse` runs the same on
the CPU, small, to try this script itself; it says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_checks import Checks, Plan, Result, plan_for
from gpu_runs import Runner

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common import environment
from dglpipe.files import write_json

REPORT = Path(__file__).parent / "results" / "gpu-report.json"


def machine() -> Result:
    """Versions and devices, also of CUDA."""
    libraries: Any = torch.backends.cudnn, torch.cuda.nccl
    cudnn, nccl = (one.version() if torch.cuda.is_available() else None for one in libraries)
    devices = range(torch.cuda.device_count())
    return {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "memory_bytes": [torch.cuda.get_device_properties(one).total_memory for one in devices],
    }


def run_checks(folder: Path, plan: Plan, log: Callable[[str], object]) -> Result:
    """Runs all checks; one that raises has failed and does not stop the others."""
    checks = Checks(Runner(folder, plan.settings), plan)
    results: Result = {}
    for check in (checks.parity, checks.no_waiting, checks.soak, checks.kill, checks.throughput):
        started = time.monotonic()
        try:
            result = check()
        except Exception as error:
            result = {"passed": False, "output": f"{type(error).__name__}: {error}"}
        results[check.__name__] = {**result, "wall_seconds": time.monotonic() - started}
        log(f"{check.__name__}: {json.dumps(results[check.__name__])}")
    return results


def make_report(results: Result, plan: Plan, rehearsal: bool) -> Result:
    """The content of the report file."""
    from dglpipe.runtime.summary import git_revision

    passed = [result["passed"] for result in results.values()]
    return {
        "passed": False not in passed,
        "complete": None not in passed,
        "rehearsal": rehearsal,
        "git": git_revision(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "stages": plan.stages,
        "processes": plan.processes,
        "settings": plan.settings,
        "checks": results,
    }


def strict_worker(overrides: Sequence[str]) -> None:
    """One worker of torchrun in which waiting for the device inside a step is an error."""
    from dglpipe.cli.main import main
    from dglpipe.methods.dgl import DglRunner
    from dglpipe.pipeline.inputs import LinkInputs

    DglRunner.train = _strict(DglRunner.train)  # type: ignore[method-assign]
    LinkInputs.take = _strict(LinkInputs.take)  # type: ignore[method-assign]
    main(["train", *overrides])


def _strict(function: Callable[..., Any]) -> Callable[..., Any]:
    def strictly(*args: Any, **kwargs: Any) -> Any:
        if not torch.cuda.is_available():
            return function(*args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strictly


def main(arguments: Sequence[str]) -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to try the script")
    parser.add_argument("--output", type=Path, help=f"default: {REPORT}; rehearsal: none")
    options = parser.parse_args(arguments)
    devices = 0 if options.rehearse or not torch.cuda.is_available() else torch.cuda.device_count()
    if not devices and not options.rehearse:
        sys.stderr.write(
            "gpu-check: no CUDA device here (torch.cuda.is_available() is false); nothing was "
            "run. `gpu_check.py --rehearse` tries the script on the CPU\n"
        )
        return 2
    plan = plan_for(devices)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        results = run_checks(Path(folder), plan, print)
    report = make_report(results, plan, options.rehearse)
    output = options.output or (None if options.rehearse else REPORT)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, report)
        print(f"wrote {os.path.relpath(output)}")
    print("passed" if report["passed"] else "FAILED")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        strict_worker(sys.argv[2:])
    sys.exit(main(sys.argv[1:]))
