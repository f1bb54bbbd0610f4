"""Cutting a network: where, and that nothing is lost by it.

stage 0      stage 1      stage 2
0  1         2  3         4  5           6 segments in 3 stages, "even"
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dglpipe.config import CnnConfig, ResnetCifarConfig, ResnetConfig, VggConfig
from dglpipe.errors import ConfigError
from dglpipe.models import build_network
from dglpipe.models.meta import meta_copy
from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes
from dglpipe.partition.split import boundaries, check_stages, cut, even_boundaries

torch.set_num_threads(1)

# Part 1: the built-in networks

EXACT = {
    "cnn4": (CnnConfig(name="cnn4", width=4, dropout=0.2), 16),
    "cnn6": (CnnConfig(name="cnn6", width=4, dropout=0.2), 16),
    "vgg11_bn": (VggConfig(name="vgg11_bn"), 32),
    "resnet18": (ResnetConfig(name="resnet18"), 32),
    "resnet50": (ResnetConfig(name="resnet50"), 32),
    "resnet20_cifar": (ResnetCifarConfig(name="resnet20_cifar"), 16),
}
COUNTS = {
    "cnn4": (CnnConfig(name="cnn4"), 4, 8),
    "cnn6": (CnnConfig(name="cnn6"), 6, 8),
    "vgg11_bn": (VggConfig(name="vgg11_bn"), 8, 32),
    "vgg13_bn": (VggConfig(name="vgg13_bn"), 10, 32),
    "vgg19_bn": (VggConfig(name="vgg19_bn"), 16, 32),
    "resnet18": (ResnetConfig(name="resnet18"), 9, 32),
    "resnet152": (ResnetConfig(name="resnet152"), 51, 32),
    "resnet110_cifar": (ResnetCifarConfig(name="resnet110_cifar"), 55, 32),
}


def on_meta(config, size):
    with torch.device("meta"):
        return build_network(config, 3, 10, size)


@functools.cache
def real(name):
    """A network with weights; VGG's classifier is narrowed, which spares 0.5 GB."""
    config, size = EXACT[name]
    network = on_meta(config, size)
    if name.startswith("vgg"):
        network.classifier[0] = nn.Linear(512 * 49, 16)
        network.classifier[3] = nn.Linear(16, 16)
        network.classifier[6] = nn.Linear(16, 10)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network, trace(network)


@pytest.mark.parametrize(("config", "count", "size"), COUNTS.values(), ids=COUNTS)
def test_number_and_names_of_the_segments(config, count, size):
    traced = trace(on_meta(config, size))
    names = [segment.name for segment in traced.segments]
    assert len(names) == count
    assert len(set(names)) == count
    if count < 20:
        shapes = propagate_shapes(traced, (2, 3, size, size))
        assert len(shapes) == count
        assert shapes[-1] == (2, 10)


NAMES = {
    "cnn6": ["layers.0", "layers.1", "layers.2", "layers.3", "layers.4", "layers.5"],
    "vgg11_bn": [f"features.{at}" for at in (0, 4, 8, 11, 15, 18, 22, 25)],
    "resnet18": ["conv1", *(f"layer{group}.{at}" for group in (1, 2, 3, 4) for at in (0, 1))],
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name, expected):
    assert [segment.name for segment in real(name)[1].segments] == expected


def run(stages, batch):
    """The stages one after the other; none may alter what the one before handed on."""
    torch.manual_seed(1)
    for stage in stages:
        handed, before = batch, batch.clone()
        batch = stage(handed)
        assert torch.equal(handed, before)
    return batch


def whole(network, batch):
    torch.manual_seed(1)
    return network(batch)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", EXACT)
def test_stages_are_the_network_bit_for_bit(name, stages):
    network, traced = real(name)
    size = EXACT[name][1]
    parts = cut(traced, even_boundaries(len(traced.segments), stages))
    for training, rows in ((True, 3), (True, 2), (False, 2)):
        for module in (network, *parts):
            module.train(training)
        images = torch.randn(rows, 3, size, size)
        start = copy.deepcopy(dict(network.named_buffers()))
        with torch.no_grad():
            expected = whole(network, images)
            end = copy.deepcopy(dict(network.named_buffers()))
            network.load_state_dict(start, strict=False)
            assert torch.equal(run(parts, images), expected)
        assert same(dict(network.named_buffers()), end)
        assert same(start, end) != training


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", EXACT)
def test_every_key_lies_in_exactly_one_stage(name, stages):
    network, traced = real(name)
    parts = cut(traced, even_boundaries(len(traced.segments), stages))
    assert_partition(network, parts)
    own = {id(weights) for part in parts for weights in part.parameters()}
    assert own == {id(weights) for weights in network.parameters()}


def assert_partition(network, parts):
    keys = [key for part in parts for key in part.state_dict()]
    assert sorted(keys) == sorted(network.state_dict())
    shared = {key: value for part in parts for key, value in part.state_dict().items()}
    assert same(shared, dict(network.state_dict()))


def test_gradients_are_the_networks():
    network, traced = real("resnet20_cifar")
    parts = [part.eval() for part in cut(traced, [0, 3, 7])]
    images = torch.randn(2, 3, 16, 16)
    network.eval()
    grads = []
    for output in (whole(network, images), run(parts, images)):
        network.zero_grad()
        output.sum().backward()
        grads.append({name: weights.grad for name, weights in network.named_parameters()})
    assert same(*grads)


# Part 2: where a cut may lie


def conv(channels=3):
    return nn.Conv2d(channels, 3, 1)


class Net(nn.Module):
    """A network from its modules and a function (network, batch) -> output."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, batch, mask=None):
        if mask is not None:
            batch = batch * mask
        return self._forward(self, batch)


def names_of(network):
    return [segment.name for segment in trace(network).segments]


def check_exact(network, shape=(2, 3, 4, 4)):
    """Cut everywhere, `network` still gives the same; returns the stages."""
    traced = trace(network)
    parts = cut(traced, range(len(traced.segments)))
    images = torch.randn(*shape)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        assert torch.equal(run(parts, images), whole(network, images))
    assert_partition(network, parts)
    return parts


def test_what_comes_before_the_first_weights_belongs_to_segment_0():
    modules = {"pool": nn.MaxPool2d(2), "norm": nn.BatchNorm2d(3), "a": conv(), "b": conv()}
    network = nn.Sequential(OrderedDict(modules))
    assert [len(segment.nodes) for segment in trace(network.eval()).segments] == [3, 1]
    assert names_of(network) == ["norm", "b"]


def test_a_residual_branch_is_not_cut():
    network = Net(lambda net, x: net.c(x + net.b(F.relu(net.a(x)))), a=conv(), b=conv(), c=conv())
    assert names_of(network) == ["a", "c"]
    check_exact(network)


def test_a_pre_norm_block_is_cut_in_front_of_its_norm():
    def forward(net, x):
        x = net.stem(x) * 2
        x = x + net.a(net.norm_a(x))
        return net.b(net.norm_b(x)) + x

    layers = {name: conv() for name in ("stem", "a", "b")}
    norms = {name: nn.BatchNorm2d(3) for name in ("norm_a", "norm_b")}
    network = Net(forward, **layers, **norms)
    assert names_of(network) == ["stem", "norm_a", "norm_b"]
    check_exact(network)


def test_a_norm_is_not_cut_from_the_operation_before_it():
    def forward(net, x):
        x = net.norm(net.stem(x))
        return x + net.a(F.relu(x))

    network = Net(forward, stem=conv(), norm=nn.BatchNorm2d(3), a=conv())
    assert names_of(network) == ["stem"]


@pytest.mark.parametrize(
    "alter",
    [
        lambda net, x: net.relu(x),
        lambda net, x: F.relu(x, inplace=True),
        lambda net, x: torch.relu_(x),
        lambda net, x: x.relu_(),
        lambda net, x: torch.exp(x, out=x),
        lambda net, x: x.flatten(2).relu_(),
        lambda net, x: net.nothing(x).clamp_(0.1),
        lambda net, x: F.dropout(x, 0.0).relu_(),
    ],
)
def test_no_cut_in_front_of_an_operation_in_place(alter):
    def forward(net, x):
        x = net.a(x)
        y = net.b(x)
        return y.sum() + alter(net, x)

    modules = {"relu": nn.ReLU(inplace=True), "nothing": nn.Dropout()}
    network = Net(forward, a=conv(), b=conv(), **modules)
    assert names_of(network) == ["a"]
    harmless = Net(
        lambda net, x: F.relu(net.b(net.a(x)) * 2, inplace=True), a=conv(), b=conv(), **modules
    )
    assert names_of(harmless) == ["a", "b"]


@pytest.mark.parametrize(
    "flat",
    [
        lambda net, x: torch.flatten(x, 1),
        lambda net, x: x.flatten(start_dim=1),
        lambda net, x: net.flatten(x),
        lambda net, x: x.view(x.size(0), -1),
        lambda net, x: x.reshape((x.shape[0], -1)),
        lambda net, x: torch.reshape(x, (-1, 48)),
        lambda net, x: x.mean((2, 3)).repeat(1, 16),
        lambda net, x: x.mean(dim=[-2, -1]).repeat(1, 16),
    ],
)
def test_the_classifier_stays_with_the_last_segment(flat):
    def forward(net, x):
        return net.d(F.relu(net.c(flat(net, net.b(net.a(x))))))

    layers = {"a": conv(), "b": conv(), "c": nn.Linear(48, 5), "d": nn.Linear(5, 2)}
    network = Net(forward, flatten=nn.Flatten(), **layers)
    assert names_of(network) == ["a", "b"]
    check_exact(network)


def reads_rows(net, x):
    b = x.shape[0]
    return net.d(net.c(net.b(net.a(x))).reshape(b, -1))


def unpacks_a_shape(net, x):
    b, c, _, _ = x.shape
    x = net.b(net.a(x)) * c
    return net.d(net.c(x + x).view(b, -1))


def takes_part_of_a_shape(net, x):
    rows = x.size()[:2][0] * 4
    x = F.relu(net.c(net.b(net.a(x))))
    return net.d(x.permute(0, 2, 3, 1).reshape(rows, -1).reshape(-1, 48))


def reads_rows_between(net, x):
    x = net.norm(net.a(x))
    b = x.size(0)
    return net.d(net.c(net.b(x).flatten(2).transpose(1, 2).reshape(b, 3, 4, 4)).reshape(b, -1))


@pytest.mark.parametrize(
    ("forward", "segments"),
    [(reads_rows, 3), (takes_part_of_a_shape, 3), (reads_rows_between, 3), (unpacks_a_shape, 2)],
)
def test_the_number_of_rows_is_read_anew_behind_a_cut(forward, segments):
    layers = {"a": conv(), "b": conv(), "c": conv(), "d": nn.Linear(48, 5)}
    network = Net(forward, norm=nn.BatchNorm2d(3), **layers)
    assert len(names_of(network)) == segments
    for rows in (1, 2, 5):
        check_exact(network, (rows, 3, 4, 4))
    assert len(propagate_shapes(trace(network), (2, 3, 4, 4))) == segments


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.flatten(0, 1).view(3, -1, 4, 4),
        lambda x: x.mean(0, keepdim=True),
        lambda x: x[:1],
    ],
)
def test_rows_are_not_read_from_a_tensor_that_may_have_others(turn):
    def forward(net, x):
        b = x.shape[0]
        x = net.c(turn(net.a(x)) * 2)
        return x.new_ones(b, 5)

    network = Net(forward, a=conv(), c=nn.Conv1d(4, 4, 1))
    assert names_of(network) == ["a"]


def test_sizes_in_the_way_of_a_cut_are_named():
    def forward(net, x):
        _, _, h, w = x.shape
        return F.interpolate(net.c(net.b(net.a(x))), (h, w))

    network = Net(forward, a=conv(), b=conv(), c=conv())
    text = error(lambda: check_stages(trace(network), 2), "pipeline.stages")
    assert "got 2; allowed: 1 to 1, the number of segments of this network" in text
    assert "read before a cut and used after it prevent more cuts: _, _, h, w = x.shape (" in text
    assert text.endswith("). Read a size where it is used")
    plain = error(lambda: check_stages(trace(nn.Sequential(conv())), 2), "pipeline.stages")
    assert "sizes" not in plain


def on_a_view(net, x):
    y = net.a(x)
    flat = y.flatten(1)
    flat += 1
    flat *= 2
    return net.b(y)


def under_another_name(net, x):
    x = net.a(x)
    same = x
    x -= 3
    x /= 2
    return net.b(x + same)


def of_another_type(net, x):
    x = net.a(x).bfloat16()
    x += torch.full((3, 1, 1), 0.3)
    return net.b(x.float())


def of_a_number(net, x):
    b = half = x.shape[0]
    half += 1
    return net.b(net.a(x).reshape(b, 3, 4, 4)) + half


@pytest.mark.parametrize("forward", [on_a_view, under_another_name, of_another_type, of_a_number])
def test_arithmetic_in_place_stays_in_place(forward):
    """Names that are read later see it, and the type stays that of the tensor."""
    torch.manual_seed(0)
    network = Net(forward, a=conv(), b=conv())
    check_exact(network)


def test_a_cut_in_front_of_arithmetic_in_place_would_alter_what_was_handed_on():
    def forward(net, x):
        x = net.a(x)
        y = net.b(x)
        x += y
        return net.c(x)

    assert names_of(Net(forward, a=conv(), b=conv(), c=conv())) == ["a", "c"]


def test_other_reshapes_are_no_flattening():
    def forward(net, x):
        x = net.a(x).flatten(2).view(2, 3, 4, 4).mean(dim=(2, 3), keepdim=True)
        return net.b(x.flatten(0).view(2, 3, 1, 1))

    assert names_of(Net(forward, a=conv(), b=conv())) == ["a", "b"]


def test_a_network_that_flattens_its_images_first_is_cut_all_the_same():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2))
    assert names_of(network) == ["1", "3"]
    check_exact(network)
    assert propagate_shapes(trace(network), (2, 3, 4, 4)) == [(2, 5), (2, 2)]


class Arithmetic(nn.Module):
    """Parameters, buffers and constants outside of torch.nn modules; some never used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = conv(), conv(), conv()
        self.again = self.a
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.alone = nn.Parameter(torch.rand(2))
        self.register_buffer("saved", torch.rand(3, 1, 1))
        self.register_buffer("table", torch.rand(3, 1, 1), persistent=False)
        self.plain = torch.rand(3, 1, 1)

    def forward(self, batch):
        batch = self.a(batch) * self.saved + self.table
        batch = batch * self.scale.exp() + self.table
        return self.b(batch) + self.plain + torch.arange(4.0)


def test_parameters_buffers_and_constants_stay_what_they_are():
    network = Arithmetic()
    assert names_of(network) == ["a", "scale", "b"]
    parts = check_exact(network)
    assert sorted(parts[0].state_dict()) == [
        *("a.bias", "a.weight", "again.bias", "again.weight", "saved")
    ]
    assert sorted(parts[1].state_dict()) == ["scale"]
    assert sorted(parts[2].state_dict()) == [
        *("alone", "b.bias", "b.weight", "unused.bias", "unused.weight")
    ]
    assert isinstance(parts[1].scale, nn.Parameter)


def test_tracing_leaves_the_network_as_it_was():
    network = Arithmetic().eval()
    network.a.train()
    keys = list(network.state_dict())
    random = torch.get_rng_state()
    first, second = names_of(network), names_of(network)
    assert first == second
    assert [network.training, network.a.training, network.b.training] == [False, True, False]
    assert list(network.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), random)


def test_stages_can_be_copied_and_trained():
    stage = cut(trace(Arithmetic()), [0, 1])[1]
    twin = copy.deepcopy(stage)
    batch = torch.randn(2, 3, 4, 4)
    assert torch.equal(twin(batch), stage(batch))
    assert twin.state_dict().keys() == stage.state_dict().keys()
    with torch.no_grad():
        twin.b.weight.zero_()
    assert not torch.equal(twin(batch), stage(batch))


def test_a_module_that_is_replaced_in_a_stage_is_used():
    stage = cut(trace(nn.Sequential(conv(), conv())), [0, 1])[0]
    stage.add_module("0", nn.Identity())
    batch = torch.randn(2, 3, 4, 4)
    assert torch.equal(stage(batch), batch)


def test_a_network_without_weights_is_one_segment():
    assert names_of(nn.Sequential(nn.ReLU(), nn.Flatten())) == ["network"]


def test_a_module_that_is_called_twice_begins_two_segments():
    assert names_of(Net(lambda net, x: net.a(net.a(x)), a=conv())) == ["a", "a#2"]


# Part 3: what cannot be cut


def error(call, key):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.key == key
    return str(caught.value)


def test_functional_dropout_follows_the_mode_of_the_stage():
    block = Net(lambda net, x: F.dropout(net.a(x), 0.5, net.training), a=conv())
    (first, second) = check_exact(nn.Sequential(block, conv()))
    images = torch.randn(2, 3, 4, 4)
    assert not torch.equal(first.train()(images), first.eval()(images))
    assert second.state_dict().keys() == {"1.weight", "1.bias"}


def with_auxiliary(net, x):
    x = net.a(x)
    if net.training:
        auxiliary = F.relu(net.aux(x.mean(dim=(2, 3))), inplace=True)
        return {"logits": net.b(x), "auxiliary": auxiliary}
    return net.b(x)


def test_the_first_of_several_outputs_is_the_logits():
    """What only the others need is not run, but its weights stay."""
    network = Net(with_auxiliary, a=conv(), b=conv(), aux=nn.Linear(3, 3))
    parts = cut(trace(network), [0, 1])
    images = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        expected = whole(network, images)
        expected = expected["logits"] if training else expected
        assert torch.equal(run(parts, images), expected)
    assert_partition(network, parts)
    assert not any(node.target == "aux" for part in parts for node in part.graph.nodes)


def test_an_entry_that_is_not_computed_is_no_logits():
    """`loss` is None where no labels came."""
    network = Net(lambda net, x: {"loss": None, "out": (1, net.b(net.a(x)))}, a=conv(), b=conv())
    first, second = cut(trace(network), [0, 1])
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(second(first(images)), network(images)["out"][1])


def test_what_another_output_writes_into_the_logits_is_done():
    def forward(net, x):
        x = net.a(x)
        other = x
        other += 1
        return net.b(x), other

    network = Net(forward, a=conv(), b=conv())
    (part,) = cut(trace(network), [0])
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(part(images), network(images)[0])


@pytest.mark.parametrize("output", [None, {"loss": None}, (), 3])
def test_a_network_without_an_output_is_refused(output):
    network = Net(lambda net, x: (net.a(x), output)[1], a=conv())
    text = error(lambda: trace(network), "model")
    assert "got 'Net, which returns no tensor'; allowed: a network that returns its logits" in text


def test_an_operation_only_in_training_is_refused():
    block = Net(lambda net, x: net.a(x).exp() if net.training else net.a(x), a=conv())
    assert "got 'exp'" in error(lambda: trace(block), "model")


def test_a_constant_that_depends_on_the_mode_is_refused():
    block = Net(lambda net, x: net.a(x) * torch.tensor([1.0 + net.training]), a=conv())
    assert "got '_tensor_constant0'" in error(lambda: trace(block), "model")


def branching(net, x):
    if x.sum() > 0:
        return net.a(x)
    return x


class Block(Net):
    """One of several in a network."""


def moody(net, x):
    """In training it does more than in evaluation."""
    x = net.a(x)
    return x * torch.rand(len(x), 1, 1, 1) if net.training else x


@pytest.mark.parametrize("forward", [branching, moody])
def test_a_block_that_cannot_be_traced_is_one_operation(forward):
    blocks = {name: Block(forward, a=conv()) for name in ("b", "c")}
    network = Net(lambda net, x: net.d(net.c(net.b(net.a(x)))), a=conv(), **blocks, d=conv())
    traced = trace(network)
    assert [segment.name for segment in traced.segments] == ["a", "b", "c", "d"]
    parts = cut(traced, [0, 1, 2, 3])
    assert_partition(network, parts)
    images = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        torch.manual_seed(1)
        expected = network(images)
        torch.manual_seed(1)
        assert torch.equal(run(parts, images), expected)


@pytest.mark.parametrize("forward", [branching, moody])
def test_boundaries_by_hand(forward):
    """The parts of a Sequential may be anything, however large."""
    large = Block(forward, a=conv(), b=conv(), c=conv())
    network = nn.Sequential(conv(), large, conv())
    traced = trace(network)
    assert [segment.name for segment in traced.segments] == ["0", "1", "2"]
    parts = cut(traced, [0, 1, 2])
    images = torch.randn(2, 3, 4, 4)
    expected = whole(network, images)
    assert torch.equal(run(parts, images), expected)
    assert sorted(key for part in parts for key in part.state_dict()) == sorted(
        network.state_dict()
    )


def test_half_a_network_is_no_operation():
    block = Block(branching, a=conv(), b=conv())
    network = Net(lambda net, x: net.b(net.a(x)), a=conv(), b=block)
    assert "Net: if x.sum() > 0: (" in error(lambda: trace(network), "model")


def test_a_decision_on_values_is_refused():
    network = Net(branching, a=conv()).eval()
    text = error(lambda: trace(network), "model")
    assert "Net: if x.sum() > 0: (" in text
    assert "test_partition.py:" in text
    assert "boundaries by hand: a builder (model=custom) of an nn.Sequential" in text
    assert "TraceError: symbolically traced variables" in text
    assert not network.training


class Reversed(torch.autograd.Function):
    """Turns gradients round."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def without_gradients(net, x):
    with torch.no_grad():
        return net.a(x) * 1


@torch.no_grad()
def decorated(net, x):
    return net.a(x)


def inferring(net, x):
    with torch.inference_mode():
        x = net.a(x)
    return x.clone()


def in_half_precision(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = net.a(x)
    return x.float()


def without_autocast(net, x):
    with torch.autocast("cpu", enabled=False):
        return net.a(x)


def reversing(net, x):
    return Reversed.apply(net.a(x))


def for_good(net, x):
    torch.set_grad_enabled(False)
    x = net.a(x)
    torch.set_grad_enabled(True)
    return x


MODES = [
    *(without_gradients, decorated, inferring, in_half_precision, without_autocast),
    *(reversing, for_good),
]


@pytest.mark.parametrize("forward", MODES)
def test_a_mode_that_a_block_enters_makes_one_operation_of_it(forward):
    """Its numbers, and which weights learn what, are those of the network."""
    network = Net(
        lambda net, x: net.c(net.mode(net.b(net.a(x)))),
        **{name: conv() for name in ("a", "b", "c")},
        mode=Block(forward, a=conv()),
    )
    assert "mode" in names_of(network)
    check_exact(network)
    parts = cut(trace(network), range(len(trace(network).segments)))
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    grads = []
    for output in (whole(network, images), run(parts, images)):
        network.zero_grad()
        images.grad = None
        output.sum().backward()
        weights = {"images": images, **dict(network.named_parameters())}
        grads.append({name: one.grad for name, one in weights.items() if one.grad is not None})
    assert same(*grads)
    assert "c.weight" in grads[0]
    assert ("mode.a.weight" in grads[0]) == (
        forward in (in_half_precision, without_autocast, reversing)
    )


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("forward", MODES)
def test_a_mode_that_the_network_enters_is_refused(forward, outside):
    """Whatever the mode of the caller; it stays that."""
    network = Net(forward, a=nn.Sequential(conv(), conv(), conv()))
    with outside():
        before = torch.is_grad_enabled()
        text = error(lambda: trace(network), "model")
        assert torch.is_grad_enabled() == before
    assert "allowed: a network whose operations all run in the mode in which it is called" in text
    assert "torch.no_grad, torch.inference_mode, torch.autocast and the forward of a torch" in text
    assert "test_partition.py:" in text


def test_a_mode_without_operations_is_no_obstacle():
    def forward(net, x):
        with torch.no_grad():
            steps = torch.arange(4.0) * 2
        return net.b(net.a(x) * steps)

    network = Net(forward, a=conv(), b=conv())
    assert names_of(network) == ["a", "b"]
    check_exact(network)


def hook(*_):
    """Does nothing."""


@pytest.mark.parametrize(
    ("register", "what"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre-hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre-hook"),
    ],
)
def test_hooks_on_the_network_itself_are_refused(register, what):
    network = nn.Sequential(conv(), conv())
    getattr(network, register)(hook)
    text = error(lambda: trace(network), "model")
    assert f"got 'Sequential with a {what}, hook'; allowed: hooks on modules inside" in text
    assert names_of(nn.Sequential(network)) != []


def test_hooks_on_modules_inside_are_run():
    network = nn.Sequential(conv(), nn.Sequential(conv(), conv()), conv())
    network[0].register_forward_hook(lambda _module, _args, output: output * 2)
    network[1].register_full_backward_hook(lambda _module, grads, _outputs: (grads[0] * 3,))
    parts = check_exact(network)
    images, grads = torch.randn(2, 3, 4, 4), []
    for output in (whole(network, images), run(parts, images)):
        network.zero_grad()
        output.sum().backward()
        grads.append({name: weights.grad for name, weights in network.named_parameters()})
    assert same(*grads)


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_a_name_that_a_stage_needs_is_refused(name):
    network = Net(lambda net, x: net.b(getattr(net, name)(x)), **{name: conv(), "b": conv()})
    text = error(lambda: trace(network), "model")
    assert f"got \"Net with a member named '{name}'\"; allowed: names that" in text
    assert text.endswith("rename the member")
    check_exact(nn.Sequential(network, conv()))


def test_tied_weights_in_two_stages_are_refused():
    network = nn.Sequential(conv(), conv(), conv())
    network[2].weight = network[0].weight
    traced = trace(network)
    text = error(lambda: cut(traced, [0, 1]), "pipeline.split")
    assert "got 'stages that begin at segments [0, 1]'" in text
    assert "0.weight and 2.weight, one and the same tensor, in one stage" in text
    assert "stages 0 and 1 would each train their own copy" in text


def test_tied_weights_in_one_stage_are_fine():
    network = nn.Sequential(conv(), conv(), conv())
    network[2].weight = network[1].weight
    assert_partition(network, cut(trace(network), [0, 1]))


class Remembering(Net):
    def get_extra_state(self):
        return 3

    def set_extra_state(self, state):
        pass


def test_state_that_no_stage_can_hold_is_refused():
    network = nn.Sequential(Remembering(lambda net, x: net.a(x), a=conv()), conv())
    text = error(lambda: cut(trace(network), [0, 1]), "model")
    assert "got '0._extra_state'; allowed: state in parameters and buffers only" in text


# Part 4: boundaries


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_even_sizes_differ_by_at_most_one_larger_first(segments, data):
    stages = data.draw(st.integers(1, segments))
    firsts = even_boundaries(segments, stages)
    ends = [*firsts[1:], segments]
    sizes = [end - first for first, end in zip(firsts, ends, strict=True)]
    assert firsts[0] == 0
    assert len(sizes) == stages
    assert sum(sizes) == segments
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_boundaries():
    assert even_boundaries(10, 4) == [0, 3, 6, 8]
    assert boundaries("even", 6, 3) == [0, 2, 4]
    assert boundaries([1, 4], 6, 3) == [0, 1, 4]
    assert boundaries([], 6, 1) == [0]


@pytest.mark.parametrize(
    ("split", "stages", "key", "words"),
    [
        ("even", 4, "stages", "got 4; allowed: 1 to 3, the number of segments of this network"),
        ("even", 0, "stages", "got 0; allowed: 1 to 3"),
        ("auto", 2, "split", "got 'auto'; allowed: even, or a list"),
        ([1], 3, "split", "got [1]; allowed: 2 numbers for 3 stages"),
        ([2, 1], 3, "split", "got [2, 1]; allowed: rising numbers"),
        ([1, 1], 3, "split", "got [1, 1]; allowed: rising numbers: no stage without a segment"),
        ([1, 3], 3, "split", "got [1, 3]; allowed: numbers from 1 to 2"),
        ([0, 1], 3, "split", "got [0, 1]; allowed: numbers from 1 to 2"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(split, stages, key, words):
    names = ["stem", "one", "two"]
    text = error(lambda: boundaries(split, 3, stages, names), f"pipeline.{key}")
    assert words in text
    assert ("Segments: 0 stem, 1 one, 2 two" in text) == (split != "auto")
    error(lambda: boundaries(split, 3, stages), f"pipeline.{key}")


# Part 5: images


def test_the_shape_behind_each_segment():
    traced = trace(on_meta(CnnConfig(width=4), 16))
    expected = [(4, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), (16, 4, 4), (10,)]
    assert propagate_shapes(traced, (5, 3, 16, 16)) == [(5, *shape) for shape in expected]


def test_the_check_leaves_real_networks_alone():
    network, _ = real("cnn6")
    network.train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    for values in (False, True):
        paper = trace(meta_copy(network, values))
        assert propagate_shapes(paper, (2, 3, 16, 16))[-1] == (2, 10)
    assert same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_check_gives_the_shapes_of_a_real_run():
    traced = real("resnet18")[1]
    images, shapes = torch.randn(2, 3, 32, 32), []
    for part in cut(traced, range(len(traced.segments))):
        images = part.eval()(images)
        shapes.append(tuple(images.shape))
    assert propagate_shapes(traced, (2, 3, 32, 32)) == shapes


def test_an_image_that_shrinks_to_nothing_is_refused():
    traced = trace(on_meta(VggConfig(name="vgg19_bn"), 8))
    text = error(lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size")
    assert "got 8; allowed: images that segment 11 (features.36) of the network" in text
    assert "fails on an input of shape (512, 1, 1) a row" in text
    assert "Output size is too small" in text


def test_an_empty_output_is_refused():
    traced = trace(Net(lambda net, x: net.a(x)[:, :, 9:], a=conv()))
    assert "Nothing is left" in error(
        lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size"
    )


def test_a_classifier_that_does_not_fit_is_refused():
    traced = trace(nn.Sequential(conv(), nn.Flatten(), nn.Linear(48, 5)))
    assert propagate_shapes(traced, (2, 3, 4, 4)) == [(2, 5)]
    text = error(lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size")
    assert "segment 0 (0)" in text


def test_weights_of_another_type_than_the_images_are_refused():
    traced = trace(nn.Sequential(conv(), conv()).double())
    text = error(lambda: propagate_shapes(traced, (2, 3, 4, 4)), "model")
    assert "got 'weights of torch.float64 in segment 0 (0)'; allowed: weights of torch" in text
    assert propagate_shapes(traced, (2, 3, 4, 4), torch.float64) == [(2, 3, 4, 4)] * 2


@pytest.mark.parametrize("spoil", [lambda x: x.sum(), lambda x: x.flatten(0, 1)])
def test_outputs_without_a_row_for_each_row_are_refused(spoil):
    traced = trace(Net(lambda net, x: spoil(net.b(net.a(x))), a=conv(), b=conv()))
    text = error(lambda: propagate_shapes(traced, (2, 3, 4, 4)), "model")
    assert "from segment 1 (b)" in text
    assert "one tensor with a row for each row of the batch" in text
