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
    """weights_sha256 of every stage at the end of training (SGD, any schedule without warmup)."""
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
        for j, learner in enumerate(learners):
            settings = config.stage(j)
            optimizers[j] = optimizer = _with_rate(optimizers[j], learner, config, j, step, batches)
            bf16 = settings.precision.name == "bf16"
            torch.default_generator.manual_seed(derive(config.seed, "step", j, 0, step))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                features = learner.segments(x if bf16 else x.float())
                head = learner.auxiliary.get("head")
                logits = head(features) if head else features
                loss = cross_entropy(logits, y, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
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
            optimizer = _with_rate(optimizer, learner, config, j, step, batches)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return learners


def _optimizer(learner, settings):
    sgd = settings.optimizer
    decay, nesterov = sgd.weight_decay, sgd.nesterov
    return torch.optim.SGD(
        learner.parameters(), sgd.lr, sgd.momentum, 0, decay, nesterov, fused=True
    )


def _with_rate(optimizer, learner, config, j, step, batches):
    """The optimizer of the step with its rate. With `method.reset_optimizer`, the authors' scripts
    build a new one at each drop of the rate."""
    settings = config.stage(j)
    if config.method.reset_optimizer and step > 1:
        before, now = (_drops(settings.schedule, batches[at - 1][0]) for at in (step - 1, step))
        optimizer = _optimizer(learner, settings) if now > before else optimizer
    optimizer.param_groups[0]["lr"] = _rate(settings, step, batches)
    return optimizer


def _drops(schedule, epoch):
    """Drops of the rate before `epoch`, counted from 1."""
    if schedule.name == "step":
        return (epoch - 1) // schedule.every
    if schedule.name == "multistep":
        return sum(epoch > milestone for milestone in schedule.milestones)
    return 0


def _rate(settings, step, batches):
    rate, schedule = settings.optimizer.lr, settings.schedule
    if schedule.name == "constant":
        return rate
    if schedule.name == "cosine":
        return rate * (1 + math.cos(math.pi * ((step - 1) / len(batches)))) / 2
    return rate * schedule.factor ** _drops(schedule, batches[step - 1][0])


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
