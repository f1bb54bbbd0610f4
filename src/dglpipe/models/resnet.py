"""torchvision's ResNets (He et al., arXiv 1512.03385), with the ImageNet stem."""

from __future__ import annotations

from torch import nn

from dglpipe.config import ResnetConfig

NETWORKS = {
    f"resnet{layers}": f"torchvision's ResNet-{layers}, {blocks} {kind} blocks"
    for layers, blocks, kind in (
        (18, 8, "basic"),
        (34, 16, "basic"),
        (50, 16, "bottleneck"),
        (101, 33, "bottleneck"),
        (152, 50, "bottleneck"),
    )
}


def build(config: ResnetConfig, classes: int) -> nn.Module:
    """Images (B, 3, H, W) -> logits (B, N)."""
    from torchvision.models import get_model_builder  # seconds that other networks save

    network: nn.Module = get_model_builder(config.name)(weights=None, num_classes=classes)
    return network
