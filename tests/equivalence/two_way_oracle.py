"""Methods with messages down the chain, in plain loops.

The oracles use the network, the data and the seeds of the trainer, but not its loop, its messages
or its way to keep earlier batches.
"""

from __future__ import annotations

import copy

import oracle
import torch
from torch.nn.functional import cross_entropy

from dglpipe.data import Request, open_data
from dglpipe.seeds import derive
from harness.configs import build_stages


class Loop:
    """The modules, optimizers and batches of a run (SGD, constant or cosine)."""

    def __init__(self, config, stages):
        source = open_data(config.data, config.seed)
        data, network = source.load(), build_stages(config, source.info, stages)
        self.config, self.stages, self.last = config, stages, stages - 1
        self.learners = [
            network.learner(j).to(memory_format=torch.channels_last) for j in range(stages)
        ]
        self.optimizers = [
            oracle._optimizer(learner, config.stage(j)) for j, learner in enumerate(self.learners)
        ]
        wanted = self.wanted = oracle._batches(config, source)
        self.batches = [
            next(iter(data.batches([Request(True, epoch, rows)]))) for epoch, rows in wanted
        ]
        self.low = config.precision.name == "bf16"
        self.wire = torch.bfloat16 if self.low else torch.float32

    def hashes(self):
        return [digest(learner) for learner in self.learners]

    def seed(self, j, step):
        torch.default_generator.manual_seed(derive(self.config.seed, "step", j, 0, step))

    def forward(self, module, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            return module(x if self.low else x.float())

    def loss(self, logits, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            return cross_entropy(logits, labels)

    def update(self, j, step):
        rate = oracle._rate(self.config.stage(j), step, self.wanted)
        self.optimizers[j].param_groups[0]["lr"] = rate
        self.optimizers[j].step()
        self.optimizers[j].zero_grad()

    def packed(self, tensor, like):
        """`tensor` as a message carries it, in the memory format of `like`."""
        return torch.empty_like(like, dtype=self.wire).copy_(tensor.detach())


def digest(learner):
    own = learner.segments.state_dict()
    for name, module in learner.auxiliary.items():
        own = {**own, **{f"{name}.{key}": one for key, one in module.state_dict().items()}}
    hashed = oracle.hashlib.sha256()
    for key, tensor in sorted(own.items()):
        hashed.update(key.encode("utf-8") + tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def leaf(j, x):
    return x.detach().clone().requires_grad_(j > 0)


@torch.no_grad()
def copied_buffers(source, target):
    for one, other in zip(source.buffers(), target.buffers(), strict=True):
        other.copy_(one)


def delayed(config, stages, replays):
    """DDG, or Features Replay: stage j learns in step t from the batch of step t - (K - 1 - j)."""
    run = Loop(config, stages)
    inputs, graphs, gradients = {}, {}, {}
    for t, (images, labels) in enumerate(run.batches, 1):
        x = images
        for j, learner in enumerate(run.learners):
            inputs[j, t] = leaf(j, x)
            if replays and j == run.last:
                break
            run.seed(j, t)
            # A copy of the stage has the weights of this step for as long as it lives.
            then = learner.segments if replays else copy.deepcopy(learner.segments)
            taken = inputs[j, t] if run.low else inputs[j, t].float()
            with torch.set_grad_enabled(not replays):
                graphs[j, t] = run.forward(then, taken), then
            copied_buffers(then, learner.segments)
            x = run.packed(graphs[j, t][0], graphs[j, t][0])
        for j, learner in enumerate(run.learners):
            n = t - (run.last - j)
            if n < 1:
                continue
            if replays:
                run.seed(j, n)
                output, then = run.forward(learner.segments, inputs[j, n]), learner.segments
            else:
                output, then = graphs.pop((j, n))
            if j == run.last:
                run.loss(output, labels).backward()
            else:
                output.backward(gradients.pop((j, n)).to(output.dtype))
            for own, past in zip(learner.segments.parameters(), then.parameters(), strict=True):
                own.grad = past.grad
            if j > 0:
                gradients[j - 1, n] = run.packed(inputs[j, n].grad, inputs[j, n])
            del inputs[j, n]
            run.update(j, t)
    return run.hashes()


def synthetic(config, stages):
    """DNI, with the gradient of a batch used `method.delay` batches later."""
    run, delay = Loop(config, stages), config.method.delay
    outputs, gradients = {}, {}
    for t, (images, labels) in enumerate(run.batches, 1):
        x = images
        for j, learner in enumerate(run.learners):
            run.seed(j, t)
            taken = leaf(j, x)
            output = run.forward(learner.segments, taken)
            if j == run.last:
                run.loss(output, labels).backward()
            else:
                with torch.no_grad():
                    guess = predicted(run, learner, output, labels)
                output.backward(guess)
                outputs[j, t] = output.detach(), labels
            if j > 0:
                gradients[j - 1, t] = run.packed(taken.grad, x)
            run.update(j, t)
            x = run.packed(output, output)
        for j, learner in enumerate(run.learners[:-1]):
            if t > delay:
                then, their_labels = outputs.pop((j, t - delay))
                target = gradients.pop((j, t - delay))
                guess = predicted(run, learner, then, their_labels).float()
                (((guess - target.float()) ** 2).sum() / len(their_labels)).backward()
                run.update(j, t)
    return run.hashes()


def predicted(run, learner, output, labels):
    with torch.autocast("cpu", torch.bfloat16, enabled=run.low):
        return learner.auxiliary["synthesiser"](output.detach(), labels).to(output.dtype)
