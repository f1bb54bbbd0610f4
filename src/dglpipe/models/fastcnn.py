"""A network that learns CIFAR-10 in a few epochs, after airbench (Jordan, arXiv 2404.00498).

A frozen 2x2 convolution whitens the image, three groups of two 3x3 convolutions follow:

    whiten, GELU | 3 x (conv, max-pool, BN, GELU, conv, BN, GELU) | max-pool, linear / 9

The scales of batch norm stay 1. The first input channels of each convolution begin as the identity.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.config import FastCnnConfig

NETWORKS = {"fastcnn": "whitening, 3 groups of two 3x3 convolutions, width x 1, 4, 4, and a line"}
WHITENING = "whiten.weight"
"""Key of the weights that `whitening` computes from images."""
SAMPLES = 5000
"""Training images from which the whitening is computed."""
_EPSILON = 5e-4
_SCALE = 1 / 9


class FastCnn(nn.Module):
    """Images (B, channels, H, H) -> logits (B, N).

    Args:
        channels: channels of the images.
        width: channels of the first group; the others have four times as many.
        classes: N.
        image_size: H in pixels, at least 25.
    """

    def __init__(self, channels: int, width: int, classes: int, image_size: int) -> None:
        super().__init__()
        widths = 8 * channels, width, 4 * width, 4 * width
        self.whiten = nn.Conv2d(channels, widths[0], 2)
        self.whiten.weight.requires_grad_(False)
        self.gelu = nn.GELU()
        self.groups = nn.Sequential(*map(_group, widths[:-1], widths[1:]))
        self.pool = nn.MaxPool2d(3)
        self.flatten = nn.Flatten()
        side = max(1, (image_size - 1) // 8 // 3)
        self.linear = nn.Linear(widths[-1] * side**2, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, H) -> (B, N)"""
        features = self.groups(self.gelu(self.whiten(images)))
        logits: Tensor = self.linear(self.flatten(self.pool(features))) * _SCALE
        return logits


def _group(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=_convolution(inputs, outputs),
            pool=nn.MaxPool2d(2),
            norm1=_norm(outputs),
            gelu1=nn.GELU(),
            conv2=_convolution(outputs, outputs),
            norm2=_norm(outputs),
            gelu2=nn.GELU(),
        )
    )


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    own = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(own.weight[:inputs])
    return own


def _norm(channels: int) -> nn.BatchNorm2d:
    own = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    own.weight.requires_grad_(False)
    return own


def build(config: FastCnnConfig, channels: int, classes: int, image_size: int) -> FastCnn:
    """Builds the network of `config`."""
    return FastCnn(channels, config.width, classes, image_size)


def whitening(images: Tensor) -> Tensor:
    """The weights of the whitening convolution, (8 C, C, 2, 2).

    The filters are the eigenvectors of the patches' second moments, each divided by the root of its
    eigenvalue + 5e-4, in falling order, and their negatives. The largest element of an
    eigenvector is positive.

    Args:
        images: (n, C, H, W), normalised.
    """
    channels = images.shape[1]
    patches = F.unfold(images.to(torch.float64), 2).movedim(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = vectors.T.flip(0) / (values.flip(0)[:, None] + _EPSILON).sqrt()
    largest = filters.gather(1, filters.abs().argmax(dim=1, keepdim=True))
    filters = filters * largest.sign()
    return torch.cat([filters, -filters]).view(-1, channels, 2, 2).to(torch.float32)
