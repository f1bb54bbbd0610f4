"""Folders of the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
TOOLS = ROOT / "tools"
GPU_CHECK = TOOLS / "gpu_check"
"""`make gpu-check`: its modules import each other by their plain names."""
