"""Initial weights from a file, every key exactly once."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dglpipe.errors import ConfigError

KEY = "model.weights"
_SHOWN = 5


def initialise(network: nn.Module, weights: str) -> None:
    """Loads `weights` into `network`; into one on meta it only looks whether they fit.

    Args:
        weights: a file of safetensors, or one of torch, a dictionary of tensors (itself or
            under `state_dict` or `model`); or a member of torchvision's enums whose file is
            in torch's cache.

    Raises:
        ConfigError: no such file, not such a file, or keys that are missing, unexpected or
            of another shape, by name.
    """
    tensors = _read(_find(weights))
    own = network.state_dict()
    tensors = _modern(tensors, own)
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
        raise ConfigError(KEY, weights, allowed, "There is no such file")
    from torchvision.models import get_weight  # seconds that other runs save

    try:
        url = get_weight(weights).url
    except (ValueError, AttributeError, KeyError) as error:
        raise ConfigError(KEY, weights, "a member of torchvision's enums", str(error)) from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.is_file():
        hint = f"Nothing is downloaded here: put {url} there, or set TORCH_HOME"
        raise ConfigError(KEY, weights, f"weights that are on disk as {cached}", hint)
    return cached


def _read(path: Path) -> dict[str, Tensor]:
    allowed = "a file of safetensors, or one of torch with nothing but tensors"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)  # as torch has written them since 1.6
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # each format has its own for what it cannot read
        raise ConfigError(KEY, str(path), allowed, _first_line(error)) from error
    for name in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping) or not all(isinstance(one, Tensor) for one in tree.values()):
        raise ConfigError(KEY, str(path), allowed, f"It holds a {type(tree).__name__}")
    return dict(tree)


_DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
"""Keys of torchvision's published DenseNets, which its builders rename while they load."""
_COUNTER = "num_batches_tracked"
"""Batch norm counts batches since torch 0.4; older files know nothing of it."""


def _modern(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`given` as torch and torchvision of today would have written it."""
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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _require_fit(weights: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{key} {tuple(given[key].shape)} where the network has {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    faults = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": shapes,
    }
    told = "; ".join(f"{what}: {_listed(keys)}" for what, keys in faults.items() if keys)
    if told:
        raise ConfigError(KEY, weights, "the keys of the network, each once", told)


def _listed(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
