"""The weights of a stage as a file, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dglpipe.stage import LocalLearner

HEAD = "head."


def named_tensors(learner: LocalLearner) -> dict[str, Tensor]:
    """Parameters and buffers of a stage: the network's under its own keys, the head's under
    `head.` + key; contiguous, on the CPU."""
    tensors = dict(learner.segments.state_dict())
    if learner.head is not None:
        tensors |= {HEAD + key: value for key, value in learner.head.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def load_tensors(learner: LocalLearner, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `named_tensors` gave, every key exactly once."""
    head = {key[len(HEAD) :]: value for key, value in tensors.items() if key.startswith(HEAD)}
    own = {key: value for key, value in tensors.items() if not key.startswith(HEAD)}
    learner.segments.load_state_dict(own, strict=True)
    if learner.head is not None:
        learner.head.load_state_dict(head, strict=True)


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors`; the file is there either whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    save_file(dict(tensors), part)
    part.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """Reads what `save` wrote."""
    return load_file(path)


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over, for each key in sorted order, the key in UTF-8 and the raw bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        flat = tensors[key].contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
