"""MAN: the head of a stage follows the weights of the first segment of the next stage.

Su et al., Momentum Auxiliary Network for Supervised Local Learning, ECCV 2024 (arXiv 2407.05623),
and MAN++. With g the form of the first segment of stage j + 1, without a classifier:

    features of the head = s g(h; phi) + (2 - s) g(h; psi)
    phi                    learned from the local loss, as the head and s (1 at the start)
    psi                  <- m psi + (1 - m) theta

theta are the weights of that segment in stage j + 1, which sends them down after every n-th step
(`local.every`). Stage j uses the weights of step t at the end of its step t + lag (`local.lag`),
with m^n in place of m. Both copies begin with the initial weights of the network. The running
statistics of psi are its own. Nothing else goes down, and no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dglpipe.config import ManConfig
from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import ConfigError
from dglpipe.methods.local.base import LocalObjective
from dglpipe.models.branches import branch_costs
from dglpipe.models.features import Boundary, SegmentForm
from dglpipe.models.heads import HEAD, head_on
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.message import Direction, Field, contiguous_field

WEIGHTS = "weights"
"""Name of the tensor down: the weights of the first segment of the next stage."""


class Man(LocalObjective):
    """The loss of a head on two copies of the segment that follows."""

    settings: ManConfig
    copies_following = True

    @property
    def lag(self) -> int:
        return self.settings.lag

    @property
    def first_use(self) -> int:
        return self.settings.every + self.settings.lag

    @property
    def copies_under_way(self) -> int:
        return self.settings.lag // self.settings.every + 2

    @property
    def utilization(self) -> float:
        """With `lag=0` a stage waits until the next stage has made the step, after its own forward,
        which is a third of a step."""
        every = self.settings.every
        return 1.0 if self.settings.lag else 3 * every / (3 * every + 1)

    def check_cut(self, spec: PipelineSpec) -> None:
        """Refuses a next stage that begins with the classifier."""
        if not self.is_last:
            _require_weights(spec.following[self.stage], self.stage)

    def fields_down(self, spec: PipelineSpec) -> tuple[Field, ...]:
        """The weights, (1, n) in fp32."""
        if self.is_last:
            return ()
        form = _require_weights(spec.following[self.stage], self.stage)
        count = sum(form.parameters.values())
        field = contiguous_field(
            WEIGHTS, torch.float32, (count,), Direction.DOWN, phases=[Phase.TRAIN]
        )
        return (replace(field, every=self.settings.every),)

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """The head."""
        following, settings = boundary.following, self.settings

        def head() -> nn.Module:
            form = _require_weights(following.form if following else None, boundary.stage)
            assert following is not None
            own = head_on(boundary.head, form.output, boundary.classes, boundary.width)
            return ManHead(following.segment, own, settings.scale == "learned")

        return {HEAD: head}

    def check_modules(self, auxiliary: Mapping[str, nn.Module]) -> None:
        """Refuses a head of a method from outside the package."""
        super().check_modules(auxiliary)
        if not self.is_last and not isinstance(auxiliary.get(HEAD), ManHead):
            got = f"man with another head in stage {self.stage}"
            hint = "Method.auxiliary has to return the head of super().auxiliary(boundary)"
            raise ConfigError("local.name", got, "task with heads of the method", hint)

    def follow(self, auxiliary: Mapping[str, nn.Module], weights: Tensor) -> None:
        """Moves psi towards `weights`."""
        head = auxiliary[HEAD]
        assert isinstance(head, ManHead)
        head.follow(weights, self.settings.momentum**self.settings.every)


def _require_weights(form: SegmentForm | None, stage: int) -> SegmentForm:
    if form is None or not form.parameters:
        got = f"local=man in stage {stage}, above which is only the classifier"
        allowed = "cuts, or fewer pipeline.stages, with a layer between stage and classifier"
        raise ConfigError("pipeline.split", got, allowed)
    return form


def _copied(segment: nn.Module) -> nn.Module:
    # A hook, of weight_norm for example, may keep a tensor that is no parameter. Such tensors
    # cannot be copied with their graph, and the hook computes them again.
    kept = (one for module in segment.modules() for one in vars(module).values())
    memo = {id(one): one.detach() for one in kept if isinstance(one, Tensor) and not one.is_leaf}
    try:
        return copy.deepcopy(segment, memo)
    except Exception as error:  # a module of the user may raise any exception
        reason = f"{error}".partition("\n")[0]
        allowed = "an objective other than man for a network that cannot be copied"
        raise ConfigError("local.name", "man", allowed, reason) from error


class ManHead(nn.Module):
    """Features (B, ...) -> logits (B, N).

    Args:
        segment: the segment to copy, with its initial weights.
        head: output of the segment -> logits (B, N).
        learns_scale: whether s is learned; otherwise it is 1.
    """

    def __init__(self, segment: nn.Module, head: nn.Module, learns_scale: bool) -> None:
        super().__init__()
        self.learned, self.average = _copied(segment), _copied(segment)
        for branch in (*branch_costs(self.learned), *branch_costs(self.average)):
            branch.is_active = False
        self.average.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(())) if learns_scale else 1.0
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        learned, average = self.learned(features), self.average(features)
        logits: Tensor = self.head(self.scale * learned + (2 - self.scale) * average)
        return logits

    @torch.no_grad()
    def follow(self, weights: Tensor, momentum: float) -> None:
        """Moves the average towards `weights` (n,), in the order of its parameters.

        Args:
            momentum: share of the average that stays.
        """
        own = list(self.average.parameters())
        parts = torch.split(weights, [one.numel() for one in own])
        for one, part in zip(own, parts, strict=True):
            one.lerp_(part.view(one.shape).to(one.dtype), 1 - momentum)
