"""Differences between CPU and CUDA. Only this module uses `torch.cuda`."""

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
    """The device of a process and the backend of its links."""

    torch_device: torch.device
    backend: str

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """The autocast context of one forward. Open a new context for each forward, because the
        optimizer step makes the cached casts of the weights stale."""
        own = PRECISIONS[precision]
        return torch.autocast(self.torch_device.type, own.dtype) if own.autocast else _NOTHING

    def scaler(self, precision: str) -> torch.amp.GradScaler | None:
        """The loss scaler for `precision`; None if the precision needs no loss scaling."""
        return (
            torch.amp.GradScaler(self.torch_device.type) if PRECISIONS[precision].scaled else None
        )

    def seed(self, value: int) -> None:
        """Seeds this device only: `torch.manual_seed` seeds all backends, 300 times as slowly."""
        generator = torch.default_generator
        if self.is_cuda:
            generator = torch.cuda.default_generators[self.torch_device.index]
        generator.manual_seed(value)

    def put(self, batch: Tensor) -> Tensor:
        """Copies `batch` to this device without waiting for the copy."""
        if not self.is_cuda:
            return batch
        return batch.pin_memory().to(self.torch_device, non_blocking=True)

    def peak_memory(self) -> int:
        """Peak memory in bytes: of the process on a CPU, of the allocator on CUDA."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch_device)
        return peak_resident_bytes()

    def prepare(self, threads: int, deterministic: bool) -> None:
        """Applies settings of the process. Call before process groups start their threads."""
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:  # required by cuBLAS with torch 2.9
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.is_cuda:
            torch.cuda.set_device(self.torch_device)
            torch.backends.cudnn.benchmark = not deterministic


def choose_backend(backend: str, local_processes: int) -> str:
    """Resolves `auto`: nccl if this machine has a GPU for each of its processes, else gloo.

    Raises:
        DeviceError: the backend is nccl and there are too few GPUs.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "auto":
        return "nccl" if count >= local_processes else "gloo"
    if backend == "nccl" and count < local_processes:
        raise DeviceError(
            f"pipeline.backend: got 'nccl'; allowed: gloo, because this machine has {count} CUDA "
            f"devices for {local_processes} processes. Give pipeline.backend=auto"
        )
    return backend


def select(backend: str, local_rank: int) -> Device:
    """The device of process `local_rank` of this machine."""
    cuda = backend == "nccl"
    return Device(torch.device("cuda", local_rank) if cuda else torch.device("cpu"), backend)


def check_precision(precision: str, backend: str, key: str = "precision") -> None:
    """Raises ConfigError for `key` if the precision is fp16 and the backend is not nccl."""
    if precision == "fp16" and backend != "nccl":
        hint = "fp16 requires CUDA devices. Give precision=bf16"
        raise ConfigError(key, precision, "fp32, bf16 (no CUDA in use)", hint)
