"""The weights of a stage as a file, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dglpipe.errors import RunDirError
from dglpipe.pipeline.stage import StageModule

HEAD = "head."


def named_tensors(learner: StageModule) -> dict[str, Tensor]:
    """Parameters and buffers of a stage: the network's under its own keys, the head's under
    `head.` + key; contiguous, on the CPU, no two in the same memory."""
    memory: set[int] = set()
    result = {}
    for key, value in _state(learner).items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if address in memory else tensor
        memory.add(address)
    return result


def _state(learner: StageModule) -> dict[str, Tensor]:
    """The learner's own tensors, under the keys of its file."""
    tensors = dict(learner.segments.state_dict())
    if learner.head is not None:
        tensors |= {HEAD + key: value for key, value in learner.head.state_dict().items()}
    return tensors


def clashes(learner: StageModule) -> list[str]:
    """Keys of the network that are also those of the stage's head, in the stage's file."""
    head = learner.head.state_dict() if learner.head is not None else {}
    return sorted({HEAD + key for key in head} & set(learner.segments.state_dict()))


def load_tensors(learner: StageModule, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `named_tensors` gave, every key exactly once."""
    own, head = split_head(tensors, set(learner.segments.state_dict()))
    learner.segments.load_state_dict(own, strict=True)
    if learner.head is not None or head:
        module = nn.Module() if learner.head is None else learner.head
        module.load_state_dict(head, strict=True)


def split_head(
    tensors: Mapping[str, Tensor], network_keys: Set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the network and those of the head, under their own keys.

    Args:
        network_keys: of the stage's part of the network, whose classifier may well be called
            `head` itself.
    """
    own = {key: value for key, value in tensors.items() if key in network_keys}
    rest = {key: value for key, value in tensors.items() if key not in network_keys}
    return own, {key.removeprefix(HEAD): value for key, value in rest.items()}


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors`; the file is there either whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    save_file(dict(tensors), part)
    part.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """Reads what `save` wrote."""
    return load_file(path)


def load_final(path: Path, learner: StageModule) -> dict[str, Tensor]:
    """Reads what `save` wrote of a stage of a finished run.

    Args:
        learner: the stage, on any device, meta included.

    Raises:
        RunDirError: the file cannot be read, or its tensors are not those of the stage.
    """
    try:
        tensors = load(path)
    except (OSError, SafetensorError) as error:
        raise RunDirError.damaged(path, error) from error
    wanted = {key: tuple(value.shape) for key, value in _state(learner).items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key, _ in wanted.items() ^ given.items())
    if wrong:
        key = wrong[0]
        came, due = given.get(key, "nothing"), wanted.get(key, "nothing")
        raise RunDirError.damaged(path, f"{key}: got {came} where the stage has {due}")
    return tensors


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over, for each key in sorted order, the key in UTF-8 and the raw bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        flat = tensors[key].contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
