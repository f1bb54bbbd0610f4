"""Data sets from outside the package."""

from __future__ import annotations

import inspect
from abc import ABC
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from dglpipe.config import PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.data.custom_split import CustomSplit
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, resolve_channels
from dglpipe.data.transforms import Normalisation, with_channels
from dglpipe.errors import DataError

_SPLITS = ("train", "test")


class _ShowsSplits(ABC):  # noqa: B024, a type for `issubclass` only
    """Classes that declare `train` and `test`, as attributes or annotations, and SimpleNamespace.

    The constructor may also set the attributes, so this is required of installed packages only.
    """

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        declared = {
            name for base in other.__mro__ for name in (*vars(base), *inspect.get_annotations(base))
        }
        return other is SimpleNamespace or declared.issuperset(_SPLITS)


KIND = Kind("data set, an object with train and test", _ShowsSplits, own=object)


@dataclass(frozen=True)
class CustomSource:
    """The data set that the builder `data.target` returns: an object with `train` and `test`.

    Each split is a pair of images (n,C,H,W) and labels (n,), or a map-style data set of pairs
    (image (C,H,W), label), which is read into memory once. Images of uint8 are scaled to [0, 1];
    other images are not scaled. The attribute `classes` is optional: the names of the classes, or
    their number. Without `classes`, N is the largest training label + 1, and `info` has to read
    all training rows. The builder receives `seed` if its signature names it.
    """

    config: PluginConfig
    """Settings of the data set."""
    seed: int
    """Seed of the run."""
    wanted_channels: int | None = None
    """C, the channels that the network requires; None: any number."""

    @cached_property
    def info(self) -> DataInfo:
        """Calls the builder, in every process.

        Raises:
            ConfigError: the builder cannot be imported, or does not accept the arguments.
            DataError: the object does not have the form that `CustomSource` describes.
        """
        train, test = (split.shape for split in self._splits)
        for split in self._splits:
            if split.is_pair:  # `load` checks the rows of map-style data sets
                split.require_labels(len(self._classes))
        if train[1:] != test[1:]:
            raise self._error(f"images of train are {train[1:]}, images of test {test[1:]} (C,H,W)")
        return DataInfo(
            name=self.config.name,
            train=train[0],
            test=test[0],
            classes=self._classes,
            channels=resolve_channels(self.config.target, train[1], self.wanted_channels),
            height=train[2],
            width=train[3],
            fingerprint=fingerprint(self.config, self._classes, train, test),
            pixels=Normalisation() if all(one.is_pixels for one in self._splits) else None,
        )

    def load(self) -> InMemory:
        """Copies both splits into memory.

        Raises:
            DataError: images of different shapes or dtypes, or labels outside the classes.
        """
        for split in self._splits:
            split.require_labels(len(self._classes))
        channels = self.info.channels
        train, test = (
            Split(with_channels(one.tensors.images, channels), one.tensors.labels)
            for one in self._splits
        )
        return InMemory(train, test, seed=self.seed)

    def _error(self, text: str) -> DataError:
        return DataError(f"data.target={self.config.target}: {text}")

    @cached_property
    def _built(self) -> Any:
        built = build_plug_in(self.config, "data", KIND, seed=self.seed)
        missing = [name for name in _SPLITS if not hasattr(built, name)]
        if missing:
            raise self._error(
                f"built a {type(built).__name__} without {' and '.join(missing)}; return an object "
                "with train and test, each a pair of tensors (images, labels) or a map-style "
                "data set"
            )
        return built

    @cached_property
    def _splits(self) -> tuple[CustomSplit, CustomSplit]:
        train, test = (
            CustomSplit(getattr(self._built, name), f"data.target={self.config.target}: {name}")
            for name in _SPLITS
        )
        return train, test

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        given = getattr(self._built, "classes", None)
        if given is None:
            train = self._splits[0]
            train.require_labels(None)
            given = int(train.tensors.labels.max()) + 1
        return tuple(map(str, range(given) if isinstance(given, int) else given))
