"""Checks one split of a data set from outside the package, and copies it into memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dglpipe.data.in_memory import Split
from dglpipe.errors import DataError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class CustomSplit:
    """A pair (images (n,C,H,W), labels (n,)), or a map-style data set of pairs (image, label)."""

    raw: Any
    """The split as the builder returned it."""
    where: str
    """Prefix of errors, `data.target=TARGET: train` for example."""

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """n, C, H and W; reads at most the first image.

        Raises:
            DataError: the split has neither form or is empty, or the images are not (C,H,W) uint8
                or float.
        """
        if self.is_pair:
            shape = tuple(self._pair[0].shape)
        elif hasattr(self.raw, "__len__") and hasattr(self.raw, "__getitem__"):
            self._require(len(self.raw) > 0, "is empty")
            shape = (len(self.raw), *self._row(0)[0].shape)
        else:
            kind = type(self.raw).__name__
            raise self._error(f"is a {kind}, neither a pair of tensors nor a map-style data set")
        self._require(len(shape) == 4, f"has images of shape {shape[1:]}, expected (C,H,W)")
        self._require(min(shape) > 0, f"is empty: its images are of shape {shape}")
        return shape[0], shape[1], shape[2], shape[3]

    @property
    def is_pixels(self) -> bool:
        """Whether the images are uint8; reads at most the first image."""
        image = self._pair[0] if self.is_pair else self._row(0)[0]
        return image.dtype is torch.uint8

    @cached_property
    def tensors(self) -> Split:
        """All images as (n,H,W,C) uint8 or float32, and all labels as (n,) int64.

        Raises:
            DataError: as `shape`; images of different shapes or dtypes, labels that are not
                integers.
        """
        images, labels = self._pair if self.is_pair else self._read_rows(self.shape)
        self._require_images(images, "")
        integers = labels.dtype in _INTEGERS and labels.dim() == 1
        kind = f"labels of shape {tuple(labels.shape)} and type {labels.dtype}"
        self._require(integers, f"has {kind}, expected (n,) of whole numbers")
        unequal = f"has {self.shape[0]} images and {len(labels)} labels"
        self._require(len(labels) == self.shape[0], unequal)
        if images.dtype is not torch.uint8:
            images = images.to(torch.float32)
        return Split(images.permute(0, 2, 3, 1).contiguous(), labels.to(torch.int64))

    def require_labels(self, classes: int | None) -> None:
        """Raises DataError unless all labels are in 0..classes-1; None: unless all are from 0."""
        labels = self.tensors.labels
        wrong = (labels < 0) | (labels >= (labels.max() + 1 if classes is None else classes))
        if wrong.any():
            index = int(wrong.nonzero()[0])
            allowed = "0 or more" if classes is None else f"0..{classes - 1}"
            raise self._error(
                f"has label {int(labels[index])} at index {index}; allowed: {allowed}"
            )

    def _error(self, text: str) -> DataError:
        return DataError(f"{self.where} {text}")

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._error(otherwise)

    def _require_images(self, images: Tensor, which: str) -> None:
        fits = images.dtype is torch.uint8 or images.is_floating_point()
        self._require(fits, f"has images{which} of {images.dtype}, expected uint8 or float")

    @property
    def is_pair(self) -> bool:
        """Whether the split is a pair of arrays; False: a map-style data set."""
        # The first element of a list of two rows is a row, which has no `ndim`.
        is_two = isinstance(self.raw, tuple | list) and len(self.raw) == 2
        return is_two and hasattr(self.raw[0], "ndim")

    @cached_property
    def _pair(self) -> tuple[Tensor, Tensor]:
        try:
            return torch.as_tensor(self.raw[0]), torch.as_tensor(self.raw[1])
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(f"cannot be converted to tensors ({error})") from error

    def _row(self, index: int) -> tuple[Tensor, Any]:
        """Image (C,H,W) and label of one row of a map-style data set."""
        row = self.raw[index]
        pair = isinstance(row, tuple | list) and len(row) == 2 and hasattr(row[0], "ndim")
        kinds = type(row).__name__
        if isinstance(row, tuple | list):
            kinds = f"({', '.join(type(each).__name__ for each in row)})"
        self._require(pair, f"has {kinds} at index {index}, expected (image tensor, label)")
        image = torch.as_tensor(row[0])
        self._require_images(image, f" at index {index}")
        return image, row[1]

    def _read_rows(self, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Images (n,C,H,W) and labels (n,) int64 of a map-style data set."""
        images = torch.empty(shape, dtype=self._row(0)[0].dtype)
        labels = torch.empty(shape[0], dtype=torch.int64)
        for index in range(shape[0]):
            image, label = self._row(index)
            same = tuple(image.shape) == shape[1:] and image.dtype is images.dtype
            kind = f"{tuple(image.shape)} and {image.dtype}"
            expected = f"{shape[1:]} and {images.dtype} as at index 0"
            self._require(same, f"has an image of {kind} at index {index}, expected {expected}")
            images[index], labels[index] = image, self._whole(label, index)
        return images, labels

    def _whole(self, label: Any, index: int) -> int:
        try:
            return int(label.item()) if isinstance(label, Tensor) else label.__index__()
        except (AttributeError, TypeError, RuntimeError):
            raise self._error(
                f"has label {label!r} at index {index}, expected a whole number"
            ) from None
