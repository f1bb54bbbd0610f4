"""The weights of a stage as a file, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dglpipe.errors import RunDirError
from dglpipe.pipeline.stage import StageModule


def named_tensors(module: StageModule) -> dict[str, Tensor]:
    """Parameters and buffers of a stage, contiguous, on the CPU, without shared memory.

    Tensors of the network have the network's own keys. Those of an auxiliary module have its
    name as prefix: `head.` + key.
    """
    memory: set[int] = set()
    result = {}
    for key, value in _state(module).items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if address in memory else tensor
        memory.add(address)
    return result


def _state(module: StageModule) -> dict[str, Tensor]:
    """The tensors of the stage, under the keys of its file."""
    return {**module.segments.state_dict(), **_auxiliary_state(module)}


def _auxiliary_state(module: StageModule) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, part in module.auxiliary.items()
        for key, value in part.state_dict().items()
    }


def clashes(module: StageModule) -> list[str]:
    """Keys of the network that an auxiliary module has in the stage's file, too."""
    return sorted(_auxiliary_state(module).keys() & module.segments.state_dict().keys())


def load_tensors(module: StageModule, tensors: Mapping[str, Tensor]) -> None:
    """Loads the result of `named_tensors`. Every key must be present exactly once."""
    own, rest = split_auxiliary(tensors, set(module.segments.state_dict()))
    module.segments.load_state_dict(own, strict=True)
    for name, part in module.auxiliary.items():
        part.load_state_dict(without_prefix(rest, name), strict=True)
    unknown = [key for key in rest if key.partition(".")[0] not in module.auxiliary]
    if unknown:
        raise RuntimeError(f"unexpected keys in the state of a stage: {', '.join(unknown)}")


def split_auxiliary(
    tensors: Mapping[str, Tensor], network_keys: Set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the network, and those of auxiliary modules with their prefixes.

    Args:
        network_keys: keys of the stage's part of the network. They decide, for the network may
            have a module called `head` itself.
    """
    own = {key: value for key, value in tensors.items() if key in network_keys}
    return own, {key: value for key, value in tensors.items() if key not in network_keys}


def without_prefix(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the auxiliary module `name`, under the module's own keys."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors`; the file is there either whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    save_file(dict(tensors), part)
    part.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """Reads what `save` wrote."""
    return load_file(path)


def load_final(path: Path, module: StageModule) -> dict[str, Tensor]:
    """Reads what `save` wrote of a stage of a finished run.

    Args:
        module: the stage, on any device, meta included.

    Raises:
        RunDirError: the file cannot be read, or its tensors are not those of the stage.
    """
    try:
        tensors = load(path)
    except (OSError, SafetensorError) as error:
        raise RunDirError.damaged(path, error) from error
    wanted = {key: tuple(value.shape) for key, value in _state(module).items()}
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
