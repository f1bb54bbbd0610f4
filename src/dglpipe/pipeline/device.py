"""All that differs between CPU and CUDA; the only module that names `torch.cuda`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from dglpipe.errors import ConfigError, DeviceError
from dglpipe.host import peak_resident_bytes
from dglpipe.pipeline.precision import PRECISIONS

_NOTHING = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Device:
    """Where a process computes, and over which backend its links run."""

    torch_device: torch.device
    backend: str

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """The context of one forward. A context kept over optimizer steps would reuse stale
        casts of the weights, so open a new one each time."""
        own = PRECISIONS[precision]
        return torch.autocast(self.torch_device.type, own.dtype) if own.autocast else _NOTHING

    def scaler(self, precision: str) -> torch.amp.GradScaler | None:
        """The loss scaler that fp16 needs."""
        return (
            torch.amp.GradScaler(self.torch_device.type) if PRECISIONS[precision].scaled else None
        )

    def seed(self, value: int) -> None:
        """Seeds this device's default generator, and no other one: `torch.manual_seed`
        walks all backends and costs 300 times as much."""
        generator = torch.default_generator
        if self.is_cuda:
            generator = torch.cuda.default_generators[self.torch_device.index]
        generator.manual_seed(value)

    def put(self, batch: Tensor) -> Tensor:
        """`batch` on this device, by a copy that the host does not wait for."""
        if not self.is_cuda:
            return batch
        return batch.pin_memory().to(self.torch_device, non_blocking=True)

    def peak_memory(self) -> int:
        """High-water mark in bytes: of the process on a CPU, of the allocator on CUDA."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch_device)
        return peak_resident_bytes()

    def prepare(self, threads: int, deterministic: bool) -> None:
        """Settings of the whole process; before any process group, whose threads inherit."""
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:  # cuBLAS with torch 2.9 wants it; without CUDA nobody reads it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.is_cuda:
            torch.cuda.set_device(self.torch_device)
            torch.backends.cudnn.benchmark = not deterministic


def choose_backend(backend: str, local_processes: int) -> str:
    """`auto` becomes nccl with a GPU for each process of this machine, else gloo.

    Raises:
        DeviceError: nccl where it cannot work.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "auto":
        return "nccl" if count >= local_processes else "gloo"
    if backend == "nccl" and count < local_processes:
        raise DeviceError(
            f"pipeline.backend: got 'nccl'; allowed: gloo, for this machine has {count} CUDA "
            f"devices and {local_processes} processes. Leave the key out: auto finds what fits"
        )
    return backend


def select(backend: str, local_rank: int) -> Device:
    """The device of the process `local_rank` of this machine."""
    cuda = backend == "nccl"
    return Device(torch.device("cuda", local_rank) if cuda else torch.device("cpu"), backend)


def check_precision(precision: str, backend: str, key: str = "precision") -> None:
    """Raises ConfigError, which names `key`, for fp16 without CUDA."""
    if precision == "fp16" and backend != "nccl":
        hint = "fp16 needs loss scaling on CUDA devices; a CPU has no fast fp16: take bf16"
        raise ConfigError(key, precision, "fp32, bf16 (no CUDA in use)", hint)
