"""The module of a stage: segments, auxiliary modules, and its step as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dglpipe.models.branches import branch_costs
from dglpipe.models.losses import Loss, check_logits, check_loss

Emit = Callable[[Tensor], None]
"""Receives the output (B, ...) of a stage as soon as it is computed."""
HEAD = "head"
"""Name of the auxiliary module whose logits are the exit of a stage."""


class StageModule(nn.Module):
    """The segments of a stage and its auxiliary modules.

    Args:
        segments: (B, ...) -> features; in the last stage -> logits (B, N).
        auxiliary: modules by name. `head` maps features to logits (B, N). The other modules
            belong to a local objective. Each name is a prefix of keys in the stage's file.
        is_exit: whether the module computes logits. False below the last stage of backprop, which
            has no heads.
        pools: features -> output of the stage; None: the features are the output. The pools at
            the end of a stage have no weights, and the auxiliary modules do not need them.
    """

    def __init__(
        self,
        segments: nn.Module,
        auxiliary: Mapping[str, nn.Module] | None = None,
        is_exit: bool = True,
        pools: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.segments = segments
        self.pools = pools
        self.names = tuple(auxiliary or {})
        for name, module in (auxiliary or {}).items():
            self.add_module(name, module)
        self.is_exit = is_exit

    @property
    def auxiliary(self) -> dict[str, nn.Module]:
        """The auxiliary modules by name."""
        return {name: self.get_submodule(name) for name in self.names}

    def forward(self, inputs: Tensor, emit: Emit | None = None) -> Tensor:
        """Logits (B, N) of `inputs` (B, ...). `emit` receives the output before the head runs."""
        return self.logits(self.features(inputs, emit))

    def features(self, inputs: Tensor, emit: Emit | None = None) -> Tensor:
        """What the auxiliary modules read of `inputs` (B, ...). `emit` receives the output."""
        features: Tensor = self.segments(inputs)
        if emit is not None:
            emit(self.output(features))
        return features

    def output(self, features: Tensor) -> Tensor:
        """The output of the stage, detached if it is not the features themselves."""
        return features if self.pools is None else self.pools(features.detach())

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, N) of `features` (B, ...). Without a head, the features are the logits."""
        head = self._modules.get(HEAD)
        return features if head is None else head(features)


@dataclass(frozen=True, slots=True)
class LocalBatch:
    """The data of one batch that a local objective can use.

    Attributes:
        inputs: (B, ...), in the dtype that the stage computes with.
        features: (B, ...), what the auxiliary modules read: the output of the stage, or the map in
            front of the pool at its end.
        logits: (B, N).
        labels: (B,), int64.
        extras: extra tensors of the message, by their declared names.
        auxiliary: the auxiliary modules of the stage, by name.
        branch_costs: mean square () of every residual branch of the stage that is measured
            (`Method.watches_branches`).
        task_loss: logits and labels -> mean loss (`method.loss`).
    """

    inputs: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor
    extras: Mapping[str, Tensor]
    auxiliary: Mapping[str, nn.Module]
    branch_costs: Sequence[Tensor]
    task_loss: Loss


Objective = Callable[[LocalBatch], Tensor]
"""The local objective of a stage: batch -> scalar to minimise."""


class LocalStep(nn.Module):
    """Forward and local objective as one module, so that replicas can average its gradients.

    Args:
        objective: the local objective; None: the task loss.
        index: j, for errors.
        classes: N; None: not checked.
    """

    def __init__(
        self,
        module: StageModule,
        loss: Loss,
        objective: Objective | None,
        index: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        # In a tuple, so that the loss is not registered: it is not part of the stage's state.
        self._functions = loss, objective
        self._index = index
        self._classes = classes
        self._branches = branch_costs(module.segments)

    def forward(
        self, inputs: Tensor, labels: Tensor, extras: Mapping[str, Tensor], emit: Emit | None
    ) -> tuple[Tensor, Tensor]:
        """The local loss () and the logits (B, N).

        Raises:
            ConfigError: logits or loss have a wrong type or shape.
        """
        loss, objective = self._functions
        if objective is None:
            logits = self.module.forward(inputs, emit)
            check_logits(logits, len(labels), self._classes, self._index)
            return check_loss(loss(logits, labels), self._index), logits
        features = self.module.features(inputs, emit)
        logits = self.module.logits(features)
        check_logits(logits, len(labels), self._classes, self._index)
        costs = [one.take() for one in self._branches]
        auxiliary = self.module.auxiliary
        batch = LocalBatch(inputs, features, logits, labels, extras, auxiliary, costs, loss)
        return check_loss(objective(batch), self._index, "method"), logits


def cast_input(batch: Tensor, precision: str) -> Tensor:
    """Casts `batch` to float32 for a stage in full precision.

    A stage in full precision runs without autocast, so the half-precision output of another stage
    must be cast explicitly.
    """
    return batch.float() if precision == "fp32" else batch
