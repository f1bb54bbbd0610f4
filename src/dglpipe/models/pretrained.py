"""Initial weights from a file. Every key of the network must occur exactly once."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from dglpipe.errors import ConfigError
from dglpipe.manifest import DamageError, FileEntry, beside, read_manifest

KEY = "model.weights"
_SHOWN = 5


def initialise(network: nn.Module, weights: str) -> None:
    """Loads `weights` into `network`. For a network on meta, only checks that the weights fit.

    Args:
        weights: a safetensors file; a file of `torch.save` with a dictionary of tensors, at the
            top level or under `state_dict` or `model`; or a member of a weights enum of
            torchvision whose file is in the cache of torch.

    Raises:
        ConfigError: the file does not exist or cannot be read, or keys are missing, unexpected,
            or have another shape or kind of number; the message names the keys.
    """
    tensors = _read(_find(weights))
    own = network.state_dict()
    tensors = _renamed(tensors, own)
    _require_fit(weights, own, tensors)
    if not any(value.is_meta for value in own.values()):
        network.load_state_dict(tensors, strict=True)


def _find(weights: str) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    family, mark, _ = weights.partition("_Weights.")
    if not mark or not family.isidentifier():
        allowed = "a file, or a member of torchvision's enums such as ResNet18_Weights.DEFAULT"
        raise ConfigError(KEY, weights, allowed, "The file does not exist")
    url = _url(weights, family + "_Weights")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.is_file():
        hint = f"Weights are not downloaded: save {url} to this path, or set TORCH_HOME"
        raise ConfigError(KEY, weights, f"weights that are on disk as {cached}", hint)
    return cached


def _url(weights: str, family: str) -> str:
    """URL of the member `weights` of the enum `family`."""
    from torchvision import models  # imported here: takes seconds

    try:
        return str(models.get_weight(weights).url)
    except (ValueError, AttributeError, KeyError) as error:
        members = getattr(getattr(models, family, None), "__members__", {})
        hint = f"{family} has {', '.join(members)}" if members else str(error)
        raise ConfigError(KEY, weights, "a member of torchvision's enums", hint) from error


_WRAPPED = ("state_dict", "model")
"""Keys under which training scripts store the dictionary of tensors."""


def _read(path: Path) -> dict[str, Tensor]:
    allowed = "a safetensors file, or a file of torch.save that contains only tensors"
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        zipped = zipfile.is_zipfile(path)  # the format of torch.save since torch 1.6
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # each format raises its own exception
        raise ConfigError(KEY, str(path), allowed, _reason(path, error)) from error
    for name in _WRAPPED:
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping):
        raise ConfigError(KEY, str(path), allowed, f"It contains a {type(tree).__name__}")
    for key, value in tree.items():
        if not isinstance(value, Tensor):
            hint = f"Key {key!r} contains {type(value).__name__}; the dictionary of tensors "
            hint += f"may be the whole file or under {' or '.join(map(repr, _WRAPPED))}"
            raise ConfigError(KEY, str(path), allowed, hint)
    return dict(tree)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, after it has been compared with its manifest, if there is one:
    `dglpipe export` writes one beside the file."""
    manifest = beside(path)
    if not manifest.exists():
        return load_file(path)
    entries = read_manifest(manifest).get("files")
    entry = FileEntry.parse(manifest, entries[0] if entries else entries)
    return load(replace(entry, name=path.name).read(path.parent))


_FOREIGN = re.compile(r"(?:GLOBAL|Unsupported class) ([\w.]+)")
"""Matches the message of torch about an object that is not a tensor."""


def _reason(path: Path, error: Exception) -> str:
    """The reason why `path` cannot be read, and the fix. Does not contain the message of torch,
    which advises to run code from the file."""
    if isinstance(error, OSError):
        return str(error)
    if isinstance(error, DamageError):
        return f"{error}. Export the network again, or delete {beside(path)} to use the file as is"
    if path.suffix != ".safetensors" and _is_safetensors(path):
        return "It is a safetensors file: give it a name that ends in .safetensors"
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return "It is a file of torch.save: give it a name that ends in .pt"
    foreign = _FOREIGN.search(str(error))
    if foreign or "TorchScript" in str(error):
        what = f"a {foreign[1]}" if foreign else "a TorchScript network"
        return f"It contains {what}: save network.state_dict() instead of the network"
    if isinstance(error, pickle.UnpicklingError):
        return "The file has neither format, or it is damaged"
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _is_safetensors(path: Path) -> bool:
    """Whether the content of the file begins like a safetensors file; ignores the name."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and 8 + length <= path.stat().st_size


_DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
"""Keys of the published DenseNets of torchvision, which its builders rename on loading."""
_COUNTER = "num_batches_tracked"
"""Batch counter of batch norm since torch 0.4; files of older versions do not have this key."""


def _renamed(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the keys of `given` to the keys of current versions of torch and torchvision."""
    if given.keys() - own.keys():
        given = {_DENSE.sub(r"\1\2", key): value for key, value in given.items()}
    if not any(map(_is_counter, given)):
        statistics = {key.rpartition(".")[0] for key in given if key.endswith("running_mean")}
        zero = torch.zeros((), dtype=torch.int64)
        counters = [key for key in own if _is_counter(key)]
        lacking = [key for key in counters if key.rpartition(".")[0] in statistics]
        given = {**given, **{key: zero.clone() for key in lacking}}
    return given


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


def _kind(tensor: Tensor) -> str:
    """Kind of numbers: `complex`, `floating` (weights) or `whole`."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _require_fit(weights: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{key} {tuple(given[key].shape)} where the network has {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    kinds = [
        f"{key} {given[key].dtype} where the network has {own[key].dtype}"
        for key in own
        if key in given and _kind(given[key]) != _kind(own[key])
    ]
    faults = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": shapes,
        "of another kind of number": kinds,
    }
    hint = "; ".join(f"{what}: {_listed(keys)}" for what, keys in faults.items() if keys)
    if hint:
        raise ConfigError(KEY, weights, "the keys of the network, each once", hint)


def _listed(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
