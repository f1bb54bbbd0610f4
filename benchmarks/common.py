"""What a benchmark stores: its command, what it ran on, and what it found."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import dglpipe
from dglpipe.host import cores

CPUS = Path("/proc/cpuinfo")


def prepare(*outputs: str | None) -> None:
    """Makes the folders of files to come: one that cannot be is known before hours of measuring."""
    for output in filter(None, outputs):
        Path(output).parent.mkdir(parents=True, exist_ok=True)


def store(output: str | None, **results: Any) -> None:
    """As JSON, whole or not at all; with no file named, nothing."""
    if output is None:
        return
    command = shlex.join(["python", *sys.argv])
    tree = {"command": command, "environment": environment(), **results}
    path = Path(output)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(tree, indent=2) + "\n")
    part.replace(path)


def environment() -> dict[str, Any]:
    """Versions and devices."""
    lines = CPUS.read_text().splitlines() if CPUS.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    flags = told.get("flags", told.get("Features", ""))  # On x86; on Arm.
    return {
        "processor": told.get("model name", platform.machine()),
        "cores": cores(),
        "devices": [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": [flag for flag in flags.split() if "bf16" in flag],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dglpipe": dglpipe.__version__,
    }
