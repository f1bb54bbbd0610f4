"""ResNets for 32x32 images (He et al., arXiv 1512.03385, section 4.2).

A 3x3 stem of 16 channels, three groups of blocks with 16, 32 and 64 channels, a global average
pool and a linear layer. Shortcuts are option A of the paper, without weights: at the beginning of a
group, a shortcut takes every second pixel and appends channels of zeros.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.config import ResnetCifarConfig

_LAYERS = (20, 56, 110)
NETWORKS = {
    f"resnet{layers}_cifar": f"ResNet-{layers} for 32x32 images, {(layers - 2) // 2} blocks, "
    "shortcuts without weights"
    for layers in _LAYERS
}


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut: (B, inputs, H, W) -> (B, outputs, H/s, W/s).

    s is 2 if `inputs` and `outputs` differ, else 1.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.padding = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/s, W/s)"""
        out = self.relu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        shortcut: Tensor = self.relu(out + self._shortcut(features))
        return shortcut

    def _shortcut(self, features: Tensor) -> Tensor:
        if not self.padding:
            return features
        every_second = features[:, :, :: self.stride, :: self.stride]
        return F.pad(every_second, (0, 0, 0, 0, 0, self.padding))


class ResnetCifar(nn.Module):
    """Images (B, 3, H, W) -> logits (B, N).

    Args:
        blocks: number of blocks in each of the three groups.
        classes: N.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.group1 = _group(16, 16, blocks)
        self.group2 = _group(16, 32, blocks)
        self.group3 = _group(32, 64, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N)"""
        features = self.relu(self.norm(self.conv(images)))
        features = self.group3(self.group2(self.group1(features)))
        logits: Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = Block(inputs, outputs)
    return nn.Sequential(first, *(Block(outputs, outputs) for _ in range(blocks - 1)))


def build(config: ResnetCifarConfig, classes: int) -> ResnetCifar:
    """Builds the network that `config` names; 6 n + 2 layers have n blocks per group."""
    layers = int(config.name.removeprefix("resnet").removesuffix("_cifar"))
    return ResnetCifar((layers - 2) // 6, classes)
