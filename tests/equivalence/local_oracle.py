"""Local objectives as plain loops over the stages, written from the formulas of the papers.

The loops use the network, the data and the seeds of the trainer, but neither its loop nor its
objectives.
"""

from __future__ import annotations

import copy
import hashlib

import torch
from oracle import _batches, _optimizer, _with_rate
from torch import nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
    mse_loss,
    one_hot,
)

from dglpipe.data import Request, open_data
from dglpipe.models import build_network
from dglpipe.models.heads import build_head
from dglpipe.models.meta import building
from dglpipe.seeds import derive
from harness.configs import build_stages

MEAN, STD = 0.3054, 0.3760
"""Of the digits."""


def train(config, stages, objective):
    """weights_sha256 of every stage.

    Args:
        config: with `local=task`.
        objective: see `Infopro`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [sha256(*stage) for stage in _train(config, stages, objective)]
    finally:
        torch.set_num_threads(threads)


def _train(config, stages, objective):
    source = open_data(config.data, config.seed, objective.wanted_channels)
    data = source.load()
    network = build_stages(config, source.info, stages)
    learners = [network.learner(j).to(memory_format=torch.channels_last) for j in range(stages)]
    more = []
    for j, learner in enumerate(learners):
        modules = nn.ModuleDict()
        for name, build in objective.modules(j, stages).items():
            with building(False, derive(config.seed, name, network.spec.bounds[j + 1])):
                modules[name] = build()
        more.append(modules.to(memory_format=torch.channels_last))
        if "head" in modules:
            learner.head = modules["head"]
    everything = [nn.ModuleList(pair) for pair in zip(learners, more, strict=True)]
    optimizers = [_optimizer(one, config.stage(j)) for j, one in enumerate(everything)]
    for learner, optimizer in zip(learners, optimizers, strict=True):
        objective.divide(learner, optimizer)
    batches = _batches(config, source)
    low = config.precision.name == "bf16"
    for step, (epoch, rows) in enumerate(batches, 1):
        ((image, y),) = data.batches([Request(True, epoch, rows)])
        x = image
        for j, learner in enumerate(learners):
            optimizers[j] = optimizer = _with_rate(
                optimizers[j], everything[j], config, j, step, batches
            )
            torch.default_generator.manual_seed(derive(config.seed, "step", j, 0, step))
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                objective.starts(learner)
                features = learner.segments(x)
                logits = learner.logits(features)
                task = cross_entropy(logits, y, label_smoothing=objective.smoothing(j))
                is_last = j == stages - 1
                loss = objective.loss(j, stages, more[j], features, image, y, task, is_last)
            optimizer.zero_grad()
            loss.backward()
            objective.before_step(j, learner, optimizer, step)
            optimizer.step()
            x = features.detach()
            if learner.pools is not None:
                x = learner.pools(x)
            x = x.to(torch.bfloat16 if low else torch.float32)
        objective.ends_step(step, learners)
    return list(zip(learners, more, strict=True))


def sha256(learner, modules):
    tensors = {**learner.segments.state_dict()}
    named = {**learner.auxiliary, **modules}
    for name, module in named.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode("utf-8") + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Task:
    """The loss of the head."""

    wanted_channels = None

    def modules(self, j, stages):
        return {}

    def starts(self, learner):
        """Called before the forward of a stage."""

    def smoothing(self, j):
        return 0.0

    def divide(self, learner, optimizer):
        """Divides the parameters into groups."""

    def before_step(self, j, learner, optimizer, step):
        """Called after the backward of a stage."""

    def ends_step(self, step, learners):
        """Called after a step of all stages."""

    def loss(self, j, stages, modules, features, image, y, task, is_last):
        return task


class Settings(Task):
    """Heads learn at half of the rate, with a weight decay of 0.01, and alone in the first two
    steps; the labels of stage 1 are smoothed."""

    def smoothing(self, j):
        return 0.1 if j == 1 else 0.0

    def divide(self, learner, optimizer):
        head = learner.auxiliary.get("head")
        if head is None:
            return
        own = {id(one) for one in head.parameters()}
        (group,) = optimizer.param_groups
        both = group["params"]
        group["params"] = [one for one in both if id(one) not in own]
        heads = {**group, "params": [one for one in both if id(one) in own]}
        optimizer.param_groups.append({**heads, "weight_decay": 0.01})

    def before_step(self, j, learner, optimizer, step):
        if len(optimizer.param_groups) == 1:
            return
        body, heads = optimizer.param_groups
        heads["lr"] = body["lr"] * 0.5
        if step <= 2:
            for one in body["params"]:
                one.grad = None


class Warmup(Task):
    """Heads learn alone in the first two steps."""

    def divide(self, learner, optimizer):
        # Without a buffer, the fused SGD fails at the first gradient after others.
        for one in optimizer.param_groups[0]["params"]:
            optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)

    def before_step(self, j, learner, optimizer, step):
        if step <= 2 and "head" in learner.auxiliary:
            for one in learner.segments.parameters():
                one.grad = None


class Infopro(Task):
    """a BCE + b CE; a from 5 to 1, b from 0.5 to 1, in K - 1 stages.

    Args:
        channels: of what the heads read, by stage.
        size: height and width of the reconstructed image.
    """

    def __init__(self, channels, size):
        self.channels, self.size = channels, size

    def modules(self, j, stages):
        if j == stages - 1:
            return {}

        def decoder():
            layers = nn.Sequential(
                nn.Conv2d(self.channels[j], 12, 3, padding=1, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 1, 3, padding=1),
            )
            return nn.ModuleDict({"layers": layers})

        return {"decoder": decoder}

    def loss(self, j, stages, modules, features, image, y, task, is_last):
        if is_last:
            return task
        if features.shape[2] != self.size:
            features = interpolate(
                features, (self.size, self.size), mode="bilinear", align_corners=True
            )
        decoded = modules["decoder"]["layers"](features)
        pixels = ((image * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
        wanted = adaptive_avg_pool2d(pixels.float() / 255, (self.size, self.size))
        error = binary_cross_entropy_with_logits(decoded.float(), wanted)
        share = j / max(1, stages - 2)
        return (5 - 4 * share) * error + (0.5 + 0.5 * share) * task


class Predsim(Task):
    """0.9 |S(g(h)) - S(Y)|^2 + 0.1 CE."""

    def __init__(self, channels):
        self.channels = channels

    def modules(self, j, stages):
        if j == stages - 1:
            return {}
        count = self.channels[j]
        return {"similarity": lambda: nn.Conv2d(count, count, 3, padding=1, bias=False)}

    def loss(self, j, stages, modules, features, image, y, task, is_last):
        if is_last:
            return task
        maps = modules["similarity"](features).float()
        deviations = maps.flatten(2).std(dim=2)
        classes = one_hot(y, 10).float()
        with torch.autocast("cpu", enabled=False):
            matching = mse_loss(cosines(deviations), cosines(classes))
        return 0.9 * matching + (1 - 0.9) * task


def cosines(rows):
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = nn.functional.normalize(rows, dim=1, eps=1e-8)
    return rows @ rows.T


class Auglocal(Task):
    """Heads of cnn6 of width 2, K = 3 and d = 2, with layers 4, 4, 8, 8, 8 above layer 0."""

    def modules(self, j, stages):
        def layer(channels, width, stride):
            return nn.Sequential(
                nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )

        def first():  # of the layers 4, 8, 8, 8 above stage 0, the second and the fourth
            return nn.Sequential(layer(4, 8, 2), layer(8, 8, 1), *end(2))

        def second():  # of the layers 8, 8 above stage 1, both
            return nn.Sequential(layer(8, 8, 1), layer(8, 8, 1), *end(2))

        def end(side):
            return nn.AvgPool2d(side), nn.Flatten(), nn.Linear(8, 10)

        assert stages == 3
        return {} if j == 2 else {"head": (first, second)[j]}


class Man(Task):
    """Heads of cnn6 on s g(h; phi) + (2 - s) g(h; psi), g the first layer of the next stage; psi
    moves to the weights of that layer, n steps after they were copied every second step.

    Args:
        config: of the run.
        lag: n.
        learns: whether s is learned.
    """

    def __init__(self, config, lag, learns):
        self.config, self.lag, self.learns = config, lag, learns
        self.copied = {}

    def modules(self, j, stages):
        if j == stages - 1:
            return {}
        first = 6 // stages * (j + 1)
        with building(False, derive(self.config.seed, "network")):
            network = build_network(self.config.model, 1, 10, 8)

        def head():
            blocks = [Block(first, copy.deepcopy(network.layers[first])) for _ in range(2)]
            side = (4 if first < 3 else 2) // (2 if first in (0, 2) else 1)
            channels = network.layers[first].conv.out_channels
            own = build_head(self.config.head, channels, (side, side), 10)
            return ManHead(*blocks, own, self.learns)

        return {"head": head}

    def ends_step(self, step, learners):
        if step % 2 == 0:
            self.copied[step] = [
                [one.detach().clone() for one in first_weights(learner)] for learner in learners
            ]
        for j, learner in enumerate(learners[:-1]):
            if step - self.lag in self.copied:
                theta = self.copied[step - self.lag][j + 1]
                for psi, weights in zip(learner.head.average.parameters(), theta, strict=True):
                    psi.detach().lerp_(weights, 1 - 0.9**2)


def first_weights(learner):
    """The weights of the first layer of a stage."""
    named = list(learner.segments.named_parameters())
    first = named[0][0].rpartition("conv")[0]
    return [one for name, one in named if name.startswith(first)]


class Block(nn.Module):
    """Layer `at` of cnn6, and the pool in front of the next one."""

    def __init__(self, at, layer):
        super().__init__()
        self.layers = nn.ModuleDict({str(at): layer})
        self.is_pooled = at in (0, 2)

    def forward(self, x):
        (layer,) = self.layers.values()
        y = torch.relu(layer.norm(layer.conv(x)))
        y = layer.dropout(y)
        return nn.functional.max_pool2d(y, 2) if self.is_pooled else y


class ManHead(nn.Module):
    def __init__(self, learned, average, head, learns):
        super().__init__()
        self.learned, self.average, self.head = learned, average, head
        for one in average.parameters():
            one.requires_grad = False
        self.scale = nn.Parameter(torch.tensor(1.0)) if learns else 1.0

    def forward(self, h):
        return self.head(self.scale * self.learned(h) + (2 - self.scale) * self.average(h))


class Trgl(Task):
    """CE + 1 / (2 tau) sum of mean(r^2), r the output of the second norm of a residual block; tau
    is 0.5, halved in the first half of the stages."""

    wanted_channels = 3

    def __init__(self):
        self.costs = []
        self.known = set()

    def starts(self, learner):
        self.costs.clear()
        if id(learner) in self.known:
            return
        self.known.add(id(learner))
        for name, module in learner.segments.named_modules():
            if name.endswith("norm2"):
                # Measured at once: the order of operations decides the order of sums in backward.
                module.register_forward_hook(
                    lambda _, __, out: self.costs.append(out.float().square().mean())
                )

    def loss(self, j, stages, modules, features, image, y, task, is_last):
        tau = 0.25 if j < stages // 2 else 0.5
        return task + sum(self.costs) / (2 * tau)
