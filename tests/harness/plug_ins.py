"""Networks, heads and losses that tests name by `target`."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from dglpipe.methods import Dgl
from dglpipe.methods.dgl import DglRunner
from dglpipe.pipeline.message import Direction


def plain_network(channels, classes, width=4, depth=2):
    """Some convolutions and a classifier without batch norm: rows do not meet."""
    more = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 1)]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        *(layer for convolution in more for layer in (convolution, nn.ReLU())),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class Residual(nn.Module):
    """conv, norm, ReLU, conv, norm, plus the input: under autocast the sum is in fp32."""

    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(x.float() + self.second_norm(self.second(y)).float())


def residual_network(channels, classes, width=4):
    """Boundaries of fp32 in bf16 too, one of a single channel, and one of a single pixel."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        Residual(width),
        nn.Conv2d(width, 1, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(1, width, 3, padding=1),
        Residual(width),
        Residual(width),
        nn.AvgPool2d(4),
        nn.Conv2d(width, width, 1),
        nn.BatchNorm2d(width),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class Sharing(nn.Module):
    """A convolution that is used twice: no cut may lie between its uses."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(256, classes)

    def forward(self, batch):
        batch = self.again(torch.relu(self.again(self.first(batch))))
        return self.last(batch.flatten(1))


def sharing_network(channels, classes):
    return Sharing(channels, classes)


class Trouble(nn.CrossEntropyLoss):
    """A loss that fails at a training step of one rank, once: never again in that folder.

    Args:
        how: `raise`, `hang`, `leave` (os._exit), `exit` (sys.exit) or `kill`.
        folder: keeps the mark of what has happened.
    """

    def __init__(self, how, rank, step, folder):
        super().__init__()
        self.how, self.left = how, step
        self.mark = Path(folder) / f"{how}_was_here"
        self.mine = os.environ.get("RANK") == str(rank) and not self.mark.exists()

    def forward(self, logits, labels):
        self.left -= torch.is_grad_enabled()
        if self.mine and self.left == 0:
            self.mark.touch()
            if self.how == "raise":
                raise ZeroDivisionError("trouble on purpose")
            if self.how == "hang":
                time.sleep(600)
            if self.how == "leave":
                os._exit(3)
            if self.how == "exit":
                sys.exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(logits, labels)


class NanLoss(nn.CrossEntropyLoss):
    """A loss that is NaN at a training step.

    Args:
        rank: the only rank with such a step; None: every rank.
        tests: whether the loss is NaN in evaluations instead.
    """

    def __init__(self, step, rank=None, tests=False):
        super().__init__()
        self.left, self.tests = step, tests
        self.mine = rank is None or os.environ.get("RANK") == str(rank)

    def forward(self, logits, labels):
        learns = torch.is_grad_enabled()
        self.left -= learns
        bad = not learns if self.tests else self.left == 0
        return super().forward(logits, labels) * (torch.nan if self.mine and bad else 1)


class WrongLoss(nn.CrossEntropyLoss):
    """A loss with a wrong result from a training step on.

    Args:
        how: `vector`, `float`, `detached`, `int`, `none`.
        step: 1: every step.
    """

    def __init__(self, how, step=1):
        super().__init__()
        self.how, self.left = how, step

    def forward(self, logits, labels):
        self.left -= torch.is_grad_enabled()
        loss = super().forward(logits, labels)
        if self.left > 0:
            return loss
        wrong = {"vector": loss.expand(3), "float": loss.item(), "detached": loss.detach()}
        return {**wrong, "int": loss.long(), "none": None}[self.how]


def head_of_pooled_maps(channels, classes):
    """For maps of 4x4 pixels alone."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, classes))


class WrongHead(nn.Module):
    """A head with wrong logits.

    Args:
        how: `flat`, `one more`, `map`, `int`, `none`.
        trains: whether the logits are wrong in training only.
    """

    def __init__(self, channels, classes, how, trains=False):
        super().__init__()
        self.linear = nn.Linear(channels, classes)
        self.how, self.trains = how, trains

    def forward(self, features):
        logits = self.linear(features.mean(dim=(2, 3)) if features.dim() == 4 else features)
        if self.trains and not (self.training and torch.is_grad_enabled()):
            return logits
        wrong = {
            "flat": logits[:, 0],
            "one more": nn.functional.pad(logits, (0, 1)),
            "map": logits[:, :, None, None],
            "int": logits.long(),
        }
        return wrong.get(self.how)


class LabelsOutside:
    """A data set of 3 classes with a label 3."""

    classes = 3
    train = test = torch.rand(8, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 3, 0, 1])


def frozen_first(channels, classes):
    """A network whose first convolution does not learn."""
    network = _three_layers(channels, classes)
    network[0].requires_grad_(False)
    return network


def with_buffers(channels, classes):
    """A network whose forward in training reads and changes a buffer."""
    network = _three_layers(channels, classes)
    network.insert(1, Counted())
    return network


def _three_layers(channels, classes):
    return nn.Sequential(
        *(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)),
    )


class Counted(nn.Module):
    """Scales a batch by a number that grows with every batch of training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("batches", torch.ones(()))

    def forward(self, features):
        if self.training:
            self.batches.add_(0.1)
        return features * self.scale * self.batches


def float_images():
    """A data set of images that are not pixels."""
    split = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    return SimpleNamespace(train=split, test=split)


def mlp_network(channels, classes):
    """Three linear layers."""
    layers = nn.Linear(64 * channels, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, classes))


class RunnerMethod(Dgl):
    """Has a runner of its own."""

    def runner(self, context):
        return DglRunner(context)


def normed_network(channels, classes):
    """A second layer whose weight is computed by a hook."""
    second = nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    layers = nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, classes))


class ForeignHeadMethod(Dgl):
    """Its heads are its own."""

    def auxiliary(self, boundary):
        features = math.prod(boundary.features.shape)
        return {"head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, boundary.classes))}


class NothingDownMethod(Dgl):
    """Declares nothing that goes down."""

    def messages(self, link, spec):
        fields = super().messages(link, spec)
        return tuple(one for one in fields if one.direction is Direction.UP)


class OwnMethod(Dgl):
    """A method with a local objective of its own."""

    @property
    def objective(self):
        return lambda batch: batch.task_loss(batch.logits, batch.labels)


class HeadsMethod(Dgl):
    """A method with heads of its own."""

    def auxiliary(self, boundary):
        return {"head": super().auxiliary(boundary)["head"]}
