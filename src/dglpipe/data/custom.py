"""Data sets from outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dglpipe.config import PluginConfig
from dglpipe.config.instantiate import build_plug_in
from dglpipe.data.custom_split import Part
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, given_channels
from dglpipe.data.transforms import with_channels
from dglpipe.errors import DataError

_PARTS = ("train", "test")


@dataclass(frozen=True)
class CustomSource:
    """What `data.target` builds: an object with `train` and `test`.

    Each is a pair of images (n,C,H,W) and labels (n,), or a map-style data set of pairs of
    image (C,H,W) and label, all of which are read once. Images of uint8 are scaled to 0..1,
    others are taken as they are. A `classes` of the object, names or a number of them, is
    optional: without it the largest training label decides, and all training rows have to
    be read for `info`. A `seed` that the target names is passed to it.
    """

    config: PluginConfig
    seed: int
    wanted_channels: int | None = None

    @cached_property
    def info(self) -> DataInfo:
        """Calls `data.target`, in every process.

        Raises:
            ConfigError: the target cannot be imported, or does not take these arguments.
            DataError: the object is not of the described form.
        """
        train, test = (part.shape for part in self._parts)
        for part in self._parts:
            if part.is_pair:  # the rows of others are read once, when they are loaded
                part.require_labels(len(self._classes))
        if train[1:] != test[1:]:
            raise self._error(f"images of train are {train[1:]}, those of test {test[1:]} (C,H,W)")
        return DataInfo(
            name=self.config.name,
            train=train[0],
            test=test[0],
            classes=self._classes,
            channels=given_channels(self.config.target, train[1], self.wanted_channels),
            height=train[2],
            width=train[3],
            fingerprint=fingerprint(self.config, self._classes, train, test),
        )

    def load(self) -> InMemory:
        """Copies both splits into memory.

        Raises:
            DataError: images that differ from one another, labels outside the classes.
        """
        for part in self._parts:
            part.require_labels(len(self._classes))
        channels = self.info.channels
        train, test = (
            Split(with_channels(part.split.images, channels), part.split.labels)
            for part in self._parts
        )
        return InMemory(train, test, seed=self.seed)

    def _error(self, text: str) -> DataError:
        return DataError(f"data.target={self.config.target}: {text}")

    @cached_property
    def _built(self) -> Any:
        built = build_plug_in(self.config, "data", seed=self.seed)
        missing = [name for name in _PARTS if not hasattr(built, name)]
        if missing:
            raise self._error(
                f"built a {type(built).__name__} without {' and '.join(missing)}; it needs both, "
                "as a pair of tensors (images, labels) or a map-style data set"
            )
        return built

    @cached_property
    def _parts(self) -> tuple[Part, Part]:
        train, test = (
            Part(getattr(self._built, name), f"data.target={self.config.target}: {name}")
            for name in _PARTS
        )
        return train, test

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        given = getattr(self._built, "classes", None)
        if given is None:
            train = self._parts[0]
            train.require_labels(None)
            given = int(train.split.labels.max()) + 1
        return tuple(map(str, range(given) if isinstance(given, int) else given))
