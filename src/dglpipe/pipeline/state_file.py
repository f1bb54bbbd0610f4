"""Nested state in a safetensors file: dictionaries, lists, tensors and numbers, without pickle.

The tensors are entries of the file, flat and in the order of their memory, so that their memory
format (channels_last) and every bit survive. The structure is JSON in the metadata of the file:

    {"optimizer": {0: tensor}}                                             the state
    {"dict": [["optimizer", {"dict": [[0, {"tensor": [key, ...]}]]}]]}     its structure
    state/optimizer/0                                                      the key of the tensor
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

TREE = "tree"
"""Key of the structure in the metadata."""
PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a state at one moment, on the CPU.

    Attributes:
        tree: the structure, as JSON values.
        tensors: the tensors by key, each flat.
    """

    tree: Any
    tensors: Mapping[str, Tensor]

    def to_bytes(self, metadata: Mapping[str, str]) -> bytes:
        """The content of a safetensors file with `metadata`."""
        own = {**metadata, TREE: json.dumps(self.tree)}
        return safetensors.torch.save(dict(self.tensors), own)


def snapshot(state: Any) -> Snapshot:
    """Copies `state`: nested dicts, lists and tuples of tensors, numbers, texts and None.

    Raises:
        TypeError: a value of another type, with its place.
    """
    tensors: dict[str, Tensor] = {}
    return Snapshot(_pack(state, "state", tensors), tensors)


def read_state(content: bytes) -> tuple[dict[str, str], Any]:
    """The metadata and the state in a file from `Snapshot.to_bytes`.

    Raises:
        ValueError: the file has no state, or a damaged one.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        tree = json.loads(metadata.pop(TREE))
        return metadata, _unpack(tree, safetensors.torch.load(content))
    except (SafetensorError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"no state in this file: {error}") from error


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON of `value`; adds copies of its tensors to `tensors`."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        # The copy has the strides of the original, without gaps.
        copied = value.detach().to("cpu", copy=True)
        key = place if place not in tensors else f"{place}#{len(tensors)}"
        tensors[key] = copied.as_strided((copied.numel(),), (1,))
        return {"tensor": [key, list(copied.shape), list(copied.stride())]}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in PLAIN:
                raise TypeError(f"{place}: got a key of type {type(key).__name__}")
        return {
            "dict": [[key, _pack(one, f"{place}/{key}", tensors)] for key, one in value.items()]
        }
    if type(value) in (list, tuple):
        items = [_pack(one, f"{place}/{at}", tensors) for at, one in enumerate(value)]
        return {type(value).__name__: items}
    raise TypeError(
        f"{place}: got {type(value).__name__}; a checkpoint holds tensors, numbers, texts, None, "
        "dicts, lists and tuples"
    )


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if type(tree) in PLAIN:
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        key, shape, strides = value
        return torch.as_strided(tensors[key], shape, strides)
    if kind == "dict":
        return {key: _unpack(one, tensors) for key, one in value}
    items = [_unpack(one, tensors) for one in value]
    return {"list": items, "tuple": tuple(items)}[kind]
