"""timm's networks, cut: one of each of forty families, where timm is installed."""

from __future__ import annotations

import exactness
import pytest
import torch

timm = pytest.importorskip("timm", reason="needs the extra timm")

QUICK = ("seresnet18", "mobilenetv3_small_050", "convnext_atto")
OTHERS = (
    *("resnet18", "resnetv2_18", "densenet121", "dla34", "dpn48b", "efficientnet_lite0"),
    *("efficientnetv2_rw_t", "mobilenetv4_conv_small_050", "regnetx_002", "repvgg_a0", "vgg11"),
    *("convnextv2_atto", "convmixer_768_32", "vit_tiny_patch16_224", "cait_xxs24_224"),
    *("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "poolformer_s12"),
    *("mixer_s32_224", "xcit_nano_12_p16_224", "convit_tiny", "edgenext_xx_small"),
    *("mobilevit_xxs", "efficientformer_l1", "levit_128s", "mobileone_s0", "fastvit_t8"),
    *("ghostnet_050", "hrnet_w18_small", "nfnet_f0", "rexnet_100", "davit_tiny", "hiera_tiny_224"),
    *("maxvit_tiny_rw_224", "eva02_tiny_patch14_224", "mambaout_femto"),
)


def check(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    side = smallest_side(network)
    exactness.check_network(network, (3, 3, side, side), (2, 4))


def smallest_side(network: torch.nn.Module) -> int:
    """Smallest supported side of the images in pixels, which saves time. Afterwards the network has
    the buffers that depend on the image size (ConViT)."""
    own: int = network.default_cfg["input_size"][-1]
    for side in (64, 96, own):
        try:
            for training in (True, False):
                with torch.no_grad():
                    network.train(training)(torch.zeros(2, 3, side, side))
        except (RuntimeError, AssertionError):
            continue
        return side
    return own


@pytest.mark.parametrize("name", QUICK)
def test_family(name):
    check(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", OTHERS)
def test_every_family(name):
    check(name)


def test_there_are_forty():
    assert len({*QUICK, *OTHERS}) == 40
