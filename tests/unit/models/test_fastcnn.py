"""The network `fastcnn` and its whitening."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dglpipe.data import Request, open_data
from dglpipe.errors import ConfigError
from dglpipe.models.fastcnn import FastCnn, whitening
from dglpipe.runtime.plan import make_plan
from harness.configs import in_test_all, layout, make_config
from harness.training import hash_all, train_world

SMALL = (
    *("model=fastcnn", "model.width=4", "data=synthetic", "data.samples=64"),
    *("data.image_size=32", "batch_size=16", "max_steps=3"),
)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    torch.manual_seed(0)
    images = F.interpolate(torch.randn(40, 3, 8, 8), (32, 32), mode="bilinear")
    images += 0.1 * torch.randn(40, 3, 32, 32)
    weights = whitening(images)
    assert weights.shape == (24, 3, 2, 2)
    assert torch.equal(weights[:12], -weights[12:])
    maps = F.conv2d(images, weights[:12]).movedim(1, 3).flatten(0, 2).double()
    moments = maps.T @ maps / len(maps)
    assert torch.allclose(moments, torch.diag(moments.diagonal()), atol=1e-3)
    assert (moments.diagonal() > 0.9).all() and (moments.diagonal() <= 1.001).all()


def test_convolutions_begin_as_the_identity():
    torch.manual_seed(0)
    network = FastCnn(3, 32, 10, 32)
    first = network.groups[0].conv1
    maps = torch.randn(1, 24, 6, 6)
    assert torch.equal(first(maps)[:, :24], maps)


def test_frozen_weights_and_output():
    network = FastCnn(3, 8, 7, 32)
    frozen = [name for name, one in network.named_parameters() if not one.requires_grad]
    norms = [name for name in frozen if name.endswith(("norm1.weight", "norm2.weight"))]
    assert frozen[0] == "whiten.weight" and len(norms) == len(frozen) - 1 == 6
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert isinstance(network.linear, nn.Linear) and network.linear.in_features == 32


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match=r"data\.image_size: got 24"):
        make_plan(make_config(*SMALL, "data.image_size=24"), layout(2, 1))


@pytest.mark.parametrize("method", ["dgl", in_test_all("dgl_async"), in_test_all("sequential")])
def test_the_first_layer_is_a_function_of_seed_and_images(method):
    config = make_config(*SMALL, f"method={method}")
    source = open_data(config.data, config.seed, 3)
    ((images, _),) = source.load().batches([Request(True, 1, torch.arange(64))])
    run = train_world(config, layout(2, 2))
    assert torch.equal(run.tensors[0, 0]["whiten.weight"], whitening(images))


def test_bits_do_not_depend_on_the_processes():
    recipe = (
        *("schedule=triangle", "optimizer.nesterov=true", "optimizer.lookahead=2"),
        *("optimizer.decoupled=true", "optimizer.norm_bias_lr_factor=64.0"),
    )
    config = make_config(*SMALL, *recipe, "label_smoothing=0.2", "precision=bf16")
    one, three = (hash_all([config], layout(3, processes)) for processes in (1, 3))
    assert one == three
