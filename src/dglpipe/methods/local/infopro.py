"""InfoPro: the features of a stage also have to reconstruct the image.

Wang et al., Revisiting Locally Supervised Learning, ICLR 2021 (arXiv 2101.10832):

    loss_j = a_j BCE(decoder(h), image in [0, 1]) + b_j CE(head(h), y)

a_j and b_j go linearly from the first to the last stage with a local loss; the last stage minimises
the loss of its classifier. The image travels up the chain as a tensor of bytes, and stage 0
computes the same bytes from its input. Stages whose output is tokens or vectors reconstruct their
own input instead, with the squared error (arXiv 2212.14215), and nothing travels; stage 0, whose
input is an image, then minimises the weighted loss of its head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.config import InfoproConfig
from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import ConfigError
from dglpipe.methods.emission import Emission
from dglpipe.methods.local.base import LocalObjective
from dglpipe.models.features import Boundary
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.message import Field, contiguous_field
from dglpipe.pipeline.stage_module import LocalBatch

IMAGE = "image"
DECODER = "decoder"


class Infopro(LocalObjective):
    """The reconstruction loss and the loss of the head."""

    settings: InfoproConfig

    @property
    def kind(self) -> str:
        return f"{self.settings} {self.reconstruction > 0} {self.stage > 0}"

    @property
    def reconstruction(self) -> float:
        """Weight of the reconstruction loss; 0 in the last stage."""
        return 0.0 if self.is_last else self._between(self.settings.reconstruction)

    def _between(self, ends: Sequence[float]) -> float:
        first, last = ends
        return first + (last - first) * self.stage / max(1, self.stages - 2)

    def check(self) -> None:
        """Refuses data sets without pixels."""
        if self.data.pixels is None:
            allowed = f"objectives other than infopro with data={self.data.name}"
            hint = "Its images are not pixels of 8 bits, so that they cannot be reconstructed"
            raise ConfigError("local.name", self.settings.name, allowed, hint)
        size, side = self.settings.decoder_size, min(self.data.height, self.data.width)
        if size is not None and size > side:
            raise ConfigError("local.decoder_size", size, f"1 to {side}, the side of the images")

    def check_cut(self, spec: PipelineSpec) -> None:
        """Refuses stages of tokens or vectors whose input and output differ in shape."""
        if not self.stage or not self.reconstruction or self._is_map(spec):
            return
        before, after = spec.input_shape(self.stage), spec.read_row(self.stage)
        if before != after:
            got = f"infopro in stage {self.stage}, which maps rows {before} to {after}"
            allowed = "a stage of maps, or one whose output has the shape of its input"
            hint = "Move the cut, or give the stage another objective in per_stage"
            raise ConfigError("local.name", got, allowed, hint)

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """The head and the decoder, if the stage reconstructs anything."""
        modules = dict(super().auxiliary(boundary))
        features, settings = boundary.features, self.settings
        colours, *side = boundary.image_shape
        if self.reconstruction and features.side is not None:

            def decoder() -> nn.Module:
                size = [settings.decoder_size or one for one in side]
                own = Decoder(features.channels, settings.channels, colours, size)
                adapter = features.adapter()
                return own if adapter is None else nn.Sequential(adapter, own)

            modules[DECODER] = decoder
        elif self.reconstruction and self.stage:
            modules[DECODER] = lambda: nn.Linear(features.shape[-1], features.shape[-1])
        return modules

    def fields(self, spec: PipelineSpec) -> tuple[Field, ...]:
        """The image, if the stage reconstructs it."""
        if not self.stage or not self.reconstruction or not self._is_map(spec):
            return ()
        return (contiguous_field(IMAGE, torch.uint8, spec.image_shape, phases=[Phase.TRAIN]),)

    def _is_map(self, spec: PipelineSpec) -> bool:
        return spec.features(self.stage).side is not None

    @property
    def extra_bytes(self) -> int:
        is_reading = bool(self.stage and self.reconstruction)
        return is_reading * self.data.channels * self.data.height * self.data.width

    @property
    def fills(self) -> Mapping[str, Callable[[Emission], Tensor]]:
        return {IMAGE: lambda emission: self._bytes(emission.inputs)}

    def _bytes(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, the pixels of normalised images."""
        assert self.data.pixels is not None
        return self.data.pixels.inverse(images.detach())

    def loss(self, batch: LocalBatch) -> Tensor:
        """Both losses; in the last stage, the loss of the classifier."""
        task = super().loss(batch)
        if self.is_last:
            return task
        task = self._between(self.settings.task) * task
        decoder = batch.auxiliary.get(DECODER)
        if decoder is None:
            return task
        decoded = decoder(batch.features).float()
        if decoded.dim() < 4:
            error = F.mse_loss(decoded, batch.inputs.float())
        else:
            image = batch.extras[IMAGE] if self.stage else self._bytes(batch.inputs)
            wanted = F.adaptive_avg_pool2d(image.float() / 255, decoded.shape[2:])
            error = F.binary_cross_entropy_with_logits(decoded, wanted)
        return self.reconstruction * error + task


class Decoder(nn.Module):
    """(B, C, h, w) -> logits of the image (B, colours, H, W).

    Args:
        channels: C.
        hidden: channels between the two convolutions.
        size: H and W.
    """

    def __init__(self, channels: int, hidden: int, colours: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = list(size)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, colours, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[2:] != torch.Size(self.size):
            features = F.interpolate(features, self.size, mode="bilinear", align_corners=True)
        images: Tensor = self.layers(features)
        return images
