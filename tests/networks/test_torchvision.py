"""torchvision's classification networks, cut: a small one of each of twelve families here, all
eighty under the marker `slow`."""

from __future__ import annotations

import exactness
import pytest
import torch
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from harness.configs import in_test_all

SMALL = {
    "AlexNet": lambda: models.alexnet(num_classes=10),
    "ConvNeXt": lambda: models.ConvNeXt(
        [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], 0.3, num_classes=10
    ),
    "DenseNet": lambda: models.DenseNet(8, (2, 2, 2, 2), 16, drop_rate=0.2, num_classes=10),
    "EfficientNet": lambda: models.efficientnet_b0(num_classes=10, stochastic_depth_prob=0.3),
    "GoogLeNet": lambda: models.googlenet(num_classes=10, init_weights=False),
    "MNASNet": lambda: models.mnasnet0_5(num_classes=10),
    "MobileNetV3": lambda: models.mobilenet_v3_small(num_classes=10),
    "RegNet": lambda: models.regnet_y_400mf(num_classes=10),
    "ShuffleNetV2": lambda: models.shufflenet_v2_x0_5(num_classes=10),
    "SqueezeNet": lambda: models.squeezenet1_1(num_classes=10),
    "Swin": lambda: models.SwinTransformer(
        [4, 4], 24, [2, 2], [2, 4], [4, 4], attention_dropout=0.1, num_classes=10
    ),
    "VisionTransformer": lambda: models.VisionTransformer(
        64, 16, 4, 2, 32, 64, dropout=0.1, num_classes=10
    ),
}


def names() -> list[str]:
    return models.list_models(module=models)


QUICK = ("AlexNet", "DenseNet", "GoogLeNet", "SqueezeNet", "Swin", "VisionTransformer")


@pytest.mark.parametrize("family", [one if one in QUICK else in_test_all(one) for one in SMALL])
def test_family(family):
    torch.manual_seed(0)
    network = SMALL[family]()
    exactness.silence_auxiliary(network)
    exactness.check_network(network, (3, 3, 64, 64), (4,))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", names())
def test_every_network(name):
    exactness.check(name)


def test_there_are_eighty():
    assert len(names()) >= 80
