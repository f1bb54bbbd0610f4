"""Residual branches of a traced module.

A residual sum adds two tensors that depend on a common tensor. Its branch is the summand with more
operations that own weights, counted from the common tensors on; the other summand is the shortcut.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, fx, nn

from dglpipe.models.branches import BranchCost
from dglpipe.partition.fx.signature import name_of

_SUMS = ("add", "iadd", "add_", "sum_like_first")


class ResidualSum(NamedTuple):
    """A sum of a residual branch and its shortcut."""

    node: fx.Node
    branch: fx.Node


def residual_sums(module: fx.GraphModule) -> list[ResidualSum]:
    """The residual sums of `module`, in order."""
    before: dict[fx.Node, frozenset[fx.Node]] = {}
    found = []
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        before[node] = frozenset({node}).union(*(before[one] for one in inputs))
        if name_of(node) not in _SUMS or len(inputs) != 2:
            continue
        first, second = inputs
        if not before[first] & before[second]:
            continue  # a position embedding, for example
        longer = _weighted(module, before[first] - before[second])
        shorter = _weighted(module, before[second] - before[first])
        if longer != shorter:
            found.append(ResidualSum(node, first if longer > shorter else second))
    return found


def _weighted(module: fx.GraphModule, nodes: frozenset[fx.Node]) -> int:
    """Number of operations in `nodes` that own weights."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return sum(
        next(module.get_submodule(str(node.target)).parameters(), None) is not None
        if node.op == "call_module"
        else node.op == "get_attr" and str(node.target) in parameters
        for node in nodes
    )


def watch_branches(module: fx.GraphModule) -> None:
    """Makes `module` measure its residual branches; see `BranchCost`."""
    graph = module.graph
    for at, (node, branch) in enumerate(residual_sums(module)):
        name = f"dglpipe_branch_{at}"
        module.add_module(name, BranchCost())
        with graph.inserting_before(node):
            passed = graph.call_module(name, (branch,))
        node.replace_input_with(branch, passed)
        if name_of(node) != "add":
            # The gradient of the measurement needs the branch, which the sum would overwrite.
            node.op, node.target = "call_function", sum_like_first
    module.recompile()


def sum_like_first(first: Tensor, second: Tensor) -> Tensor:
    """The values of `first += second`, as a new tensor."""
    return (first + second).to(first.dtype)


def is_bottleneck(module: fx.GraphModule, channels: int) -> bool:
    """Whether a convolution of several pixels has a quarter of `channels`, as in a ResNet-50.

    Args:
        channels: channels of the output of `module`.
    """
    return any(
        isinstance(one, nn.Conv2d)
        and one.kernel_size != (1, 1)
        and 4 * one.out_channels == channels
        for one in module.modules()
    )
