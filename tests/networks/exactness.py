"""Checks that the stages of a network compute the same as the network."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dglpipe.models.meta import meta_copy
from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes
from dglpipe.partition.split import cut, even_boundaries

ROWS = 3
KWARGS = {
    **{f"vit_{size}": {"image_size": 64} for size in ("b_16", "b_32", "l_16", "l_32")},
    "vit_h_14": {"image_size": 56},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
SIZES = {"inception_v3": 299, "vit_h_14": 56, "maxvit_t": 224}
"""Pixels; 64 for all other networks."""


def build(name: str) -> nn.Module:
    from torchvision.models import get_model_builder

    torch.manual_seed(0)
    network: nn.Module = get_model_builder(name)(num_classes=10, **KWARGS.get(name, {}))
    silence_auxiliary(network)
    return network


def silence_auxiliary(network: nn.Module) -> None:
    """Makes auxiliary classifiers, which the chain leaves out, draw no random numbers."""
    for path, module in network.named_modules():
        if "aux" in path.lower() and isinstance(module, nn.Dropout):
            module.p = 0.0


def check(name: str, counts: tuple[int, ...] = (2, 4)) -> None:
    """Checks that the stages equal network `name`, bit for bit, in training and evaluation, and
    have all of its keys."""
    network = build(name)
    check_network(network, (ROWS, 3, *[SIZES.get(name, 64)] * 2), counts)


def check_network(network: nn.Module, shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    traced = trace(network)
    propagate_shapes(trace(meta_copy(network)), shape)
    start = copy.deepcopy(dict(network.named_buffers()))
    torch.manual_seed(1)
    images = torch.randn(*shape)
    expected = {}
    for training in (True, False):
        network.train(training)
        restore(network, start)
        with torch.no_grad():
            expected[training] = first(seeded(network, images))
        if training:
            after = copy.deepcopy(dict(network.named_buffers()))
    for stages in counts:
        assert len(traced.segments) >= stages, f"{len(traced.segments)} segments"
        parts = cut(traced, even_boundaries(len(traced.segments), stages))
        keys = [key for part in parts for key in part.state_dict()]
        assert sorted(keys) == sorted(network.state_dict())
        chain = nn.Sequential(*parts)
        for training in (True, False):
            chain.train(training)
            restore(network, start)
            with torch.no_grad():
                assert torch.equal(seeded(chain, images), expected[training]), (stages, training)
            if training:
                assert_same_statistics(dict(network.named_buffers()), after)


def seeded(module: nn.Module, images: torch.Tensor) -> object:
    torch.manual_seed(2)
    return module(images)


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def restore(network: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])


def assert_same_statistics(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Compares the statistics of batch norm, without auxiliary classifiers."""
    for name, buffer in wanted.items():
        if "aux" not in name.lower():
            assert torch.equal(found[name], buffer), name
