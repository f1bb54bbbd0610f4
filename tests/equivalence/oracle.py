"""Decoupled Greedy Learning as in Algorithm 1 of the paper.

For each mini-batch (x_0, y), for j = 0..K-1:

    x_{j+1} = f_j(x_j; theta_j)
    loss_j = CE(head_j(x_{j+1}), y)
    one optimizer step on (theta_j, head_j)
    x_{j+1} goes on, detached

The oracle uses the network, the data and the seeds of the trainer, but not its loop.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch.nn.functional import cross_entropy

from dglpipe.data import Request, open_data
from dglpipe.data.sampler import epoch_order
from dglpipe.seeds import derive
from harness.configs import build_stages


def train(config, stages):
    """weights_sha256 of every stage at the end of training (SGD, constant or cosine)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [weights_sha256(learner) for learner in _train(config, stages)]
    finally:
        torch.set_num_threads(threads)


def _train(config, stages):
    source = open_data(config.data, config.seed)
    data = source.load()
    network = build_stages(config, source.info, stages)
    learners = [network.learner(j).to(memory_format=torch.channels_last) for j in range(stages)]
    optimizers = [_optimizer(learner, config.stage(j)) for j, learner in enumerate(learners)]
    batches = _batches(config, source)
    for step, (epoch, rows) in enumerate(batches, 1):
        ((x, y),) = data.batches([Request(True, epoch, rows)])
        for j, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
            settings = config.stage(j)
            bf16 = settings.precision.name == "bf16"
            torch.default_generator.manual_seed(derive(config.seed, "step", j, 0, step))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                features = learner.segments(x if bf16 else x.float())
                head = learner.auxiliary.get("head")
                logits = head(features) if head else features
                loss = cross_entropy(logits, y, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = _rate(settings, step, len(batches))
            optimizer.step()
            x = features.detach()
            if learner.pools is not None:
                x = learner.pools(x)
            x = x.to(torch.bfloat16 if bf16 else torch.float32)
    return learners


def _batches(config, source):
    """(epoch, rows) of every step."""
    size = source.info.train
    epochs = range(1, config.epochs + 1)
    orders = [(epoch, epoch_order(config.seed, epoch, size)) for epoch in epochs]
    batches = [(epoch, rows) for epoch, order in orders for rows in order.split(config.batch_size)]
    return batches[: config.max_steps]


def train_sequentially(config, stages):
    """As `train`, for sequential training: one stage after the other, the stages below frozen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [weights_sha256(learner) for learner in _train_sequentially(config, stages)]
    finally:
        torch.set_num_threads(threads)


def _train_sequentially(config, stages):
    source = open_data(config.data, config.seed)
    data = source.load()
    network = build_stages(config, source.info, stages)
    learners = [network.learner(j).to(memory_format=torch.channels_last) for j in range(stages)]
    batches = _batches(config, source)
    low = config.precision.name == "bf16"
    wire = torch.bfloat16 if low else torch.float32
    for j, learner in enumerate(learners):
        optimizer = _optimizer(learner, config.stage(j))
        for step, (epoch, rows) in enumerate(batches, 1):
            ((x, y),) = data.batches([Request(True, epoch, rows)])
            for below in learners[:j]:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                    x = below.eval().segments(x)
                    x = (below.pools or torch.nn.Identity())(x).to(wire)
            torch.default_generator.manual_seed(derive(config.seed, "step", j, 0, step))
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = cross_entropy(learner(x, None), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = _rate(config.stage(j), step, len(batches))
            optimizer.step()
    return learners


def _optimizer(learner, settings):
    sgd = settings.optimizer
    decay, nesterov = sgd.weight_decay, sgd.nesterov
    return torch.optim.SGD(
        learner.parameters(), sgd.lr, sgd.momentum, 0, decay, nesterov, fused=True
    )


def _rate(settings, step, steps):
    if settings.schedule.name == "constant":
        return settings.optimizer.lr
    return settings.optimizer.lr * (1 + math.cos(math.pi * ((step - 1) / steps))) / 2


def weights_sha256(learner):
    """SHA-256 over the sorted keys, each followed by the raw bytes of its tensor."""
    tensors = {**learner.segments.state_dict()}
    if "head" in learner.auxiliary:
        state = learner.auxiliary["head"].state_dict()
        tensors |= {f"head.{key}": value for key, value in state.items()}
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode("utf-8") + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
