"""torchvision's VGG networks with batch norm (Simonyan and Zisserman, arXiv 1409.1556)."""

from __future__ import annotations

from torch import nn

from dglpipe.config import VggConfig

NETWORKS = {
    f"vgg{layers}_bn": f"torchvision's VGG-{layers} with batch norm, {layers - 3} convolutions"
    for layers in (11, 13, 16, 19)
}


def build(config: VggConfig, classes: int) -> nn.Module:
    """Images (B, 3, H, W) of at least 32x32 pixels -> logits (B, N)."""
    from torchvision.models import get_model_builder  # seconds that other networks save

    builder = get_model_builder(config.name)
    network: nn.Module = builder(weights=None, num_classes=classes, dropout=config.dropout)
    return network
