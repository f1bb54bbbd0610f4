"""A method from outside the package: every stage also reconstructs the image.

    PYTHONPATH=examples/method dglpipe train method=custom \\
        method.target=reconstruction:build "method.args={weight:0.1}"

The local objective of a stage is its task loss plus the error of a small decoder that
reconstructs the image from the features, as in InfoPro (Wang et al., ICLR 2021). Stage 0 has the
image as its input. The stages above receive the image with the activations, as a declared tensor of
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from dglpipe.config import MethodConfig
from dglpipe.data.batch_schedule import Phase
from dglpipe.methods import Dgl, Emission
from dglpipe.models.features import Boundary
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.message import Field, contiguous_field
from dglpipe.pipeline.stage_module import LocalBatch

IMAGE = "image"
DECODER = "decoder"
SCALE = 32.0
"""Byte steps per unit of a normalised pixel: a byte covers -4 to 4."""


class Reconstruction(Dgl):
    """Decoupled greedy learning with a reconstruction loss.

    Args:
        weight: factor of the reconstruction error in the local objective.
    """

    def __init__(self, settings: MethodConfig, weight: float) -> None:
        super().__init__(settings)
        self.weight = weight

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """The head of the package, and a decoder: features (B, C, H, W) -> image."""
        channels = boundary.image_shape[0]

        def decoder() -> nn.Module:
            return nn.Conv2d(boundary.features.channels, channels, kernel_size=3, padding=1)

        return {**super().auxiliary(boundary), DECODER: decoder}

    def messages(self, link: int, spec: PipelineSpec) -> tuple[Field, ...]:
        """The tensors of the package, and the image in training."""
        image = contiguous_field(IMAGE, torch.uint8, spec.image_shape, phases=[Phase.TRAIN])
        return (*super().messages(link, spec), image)

    def outgoing(self, emission: Emission) -> Mapping[str, Tensor]:
        """The image as bytes. In stage 0 the image is the input."""
        if IMAGE in emission.extras:
            return {IMAGE: emission.extras[IMAGE]}
        return {IMAGE: to_bytes(emission.inputs)}

    @property
    def objective(self) -> Callable[[LocalBatch], Tensor]:
        """The local objective of every stage."""
        return self._objective

    def _objective(self, batch: LocalBatch) -> Tensor:
        loss = batch.task_loss(batch.logits, batch.labels)
        if DECODER not in batch.auxiliary:  # the last stage has no decoder
            return loss
        image = batch.extras.get(IMAGE)
        wanted = from_bytes(to_bytes(batch.inputs) if image is None else image)
        decoded = batch.auxiliary[DECODER](batch.features).float()
        error = mse_loss(interpolate(decoded, wanted.shape[2:]), wanted)
        return loss + self.weight * error


def to_bytes(image: Tensor) -> Tensor:
    """Converts a normalised image (B, C, H, W) to bytes, a quarter of the size of fp32."""
    return (image.detach().float() * SCALE + 128).round().clamp(0, 255).to(torch.uint8)


def from_bytes(image: Tensor) -> Tensor:
    """Converts the result of `to_bytes` back to a normalised image (B, C, H, W)."""
    return (image.float() - 128) / SCALE


def build(settings: MethodConfig, weight: float = 0.1) -> Reconstruction:
    """The builder for `method.target`: dglpipe passes `settings`, the user passes `weight`."""
    return Reconstruction(settings, weight)
