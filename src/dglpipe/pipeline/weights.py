"""Files of the weights of a stage, and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as files
from torch import Tensor

from dglpipe.errors import RunDirError
from dglpipe.files import write_bytes
from dglpipe.manifest import FileEntry
from dglpipe.pipeline.stage_module import StageModule


def named_tensors(module: StageModule) -> dict[str, Tensor]:
    """Parameters and buffers of a stage, contiguous, on the CPU, without shared memory.

    Tensors of the network keep their keys in the network. Keys of an auxiliary module have the
    name of the module as prefix: `head.` + key.
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
    """Keys in the file of the stage that belong to the network and to an auxiliary module."""
    return sorted(_auxiliary_state(module).keys() & module.segments.state_dict().keys())


def load_tensors(module: StageModule, tensors: Mapping[str, Tensor]) -> None:
    """Loads the result of `named_tensors` into `module`; missing and extra keys are errors."""
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
    """Separates the network's tensors from the auxiliary modules' tensors, with prefixes.

    Args:
        network_keys: keys of the stage's part of the network. A prefix does not suffice,
            because the network may have a module named `head`.
    """
    own = {key: value for key, value in tensors.items() if key in network_keys}
    return own, {key: value for key, value in tensors.items() if key not in network_keys}


def without_prefix(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the auxiliary module `name`, without the prefix."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def save(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes `tensors` to a safetensors file, atomically.

    Returns:
        The entry of the file in a manifest.

    Raises:
        StorageError: the file cannot be written.
    """
    content = files.save(dict(tensors))
    write_bytes(path, content)
    return FileEntry.of(path.name, content)


def load(path: Path) -> dict[str, Tensor]:
    """Reads a file from `save`."""
    return files.load(path.read_bytes())


def check_stage(path: Path, content: bytes, module: StageModule) -> dict[str, Tensor]:
    """The weights of a stage from the content of its file.

    Args:
        path: the file, for errors.
        module: the stage, on any device, including meta; `module` is not changed.

    Raises:
        RunDirError: not a safetensors file, or keys or shapes differ from the stage.
    """
    try:
        tensors = files.load(content)
    except SafetensorError as error:
        raise RunDirError.damaged(path, error) from error
    wanted = {key: tuple(value.shape) for key, value in _state(module).items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key, _ in wanted.items() ^ given.items())
    if wrong:
        key = wrong[0]
        got, expected = given.get(key, "nothing"), wanted.get(key, "nothing")
        raise RunDirError.damaged(path, f"{key}: got {got} where the stage has {expected}")
    return tensors


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over, for each key in sorted order, the key in UTF-8 and the raw bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        flat = tensors[key].contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
