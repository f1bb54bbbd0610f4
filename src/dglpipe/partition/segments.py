"""Segments: groups of the operations of a network, between which it can be cut.

    network --trace--> operations, grouped into segments --boundaries, cut--> stages

An operation is a node of `torch.fx`. A module of torch.nn other than Sequential is one
operation. A segment begins at an operation that owns weights and extends to the next one:

    conv bn relu pool | conv bn relu | conv bn relu pool flatten linear
    segment 0           segment 1      segment 2, with the classifier

A cut is possible only where exactly one tensor is alive, so a residual block is one segment.
No cut lies in front of an operation that overwrites that tensor, since the sender still reads
it. A norm belongs to the operation before it. Only a norm that begins a residual branch
(pre-norm blocks) begins a segment, since no other cut is possible there.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg

from dglpipe.partition.fx.branches import watch_branches
from dglpipe.partition.fx.graph import Operations
from dglpipe.partition.fx.pooling import without_pools
from dglpipe.partition.fx.signature import operations_signature
from dglpipe.partition.fx.tracing import symbolic_graph
from dglpipe.partition.fx.validate import validate_network


@dataclass(frozen=True, slots=True)
class Segment:
    """The smallest part of a network that can be a stage.

    Attributes:
        name: path of the module with exactly the weights of this segment; if there is none, path
            of the first operation with weights. Unique.
        nodes: the operations, in order of execution.
        output: the node that the next segment reads; in the last segment, the network's output.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    output: Argument


@dataclass(frozen=True, eq=False)
class TracedNetwork:
    """A network and its segments.

    Attributes:
        network: the argument of `trace`; stages from `cut` share the modules of the network.
        operations: the operations of the network, in order.
        segments: the segments in order of execution; at least one.
        watches_branches: whether the stages and pieces measure their residual branches.
    """

    network: nn.Module
    operations: Operations
    segments: tuple[Segment, ...]
    watches_branches: bool = False
    outputs: dict[tuple[int, ...], list[tuple[int, ...]]] = field(default_factory=dict)
    """Shape of a batch -> result of `propagate_shapes`."""
    _pieces: dict[int, fx.GraphModule] = field(default_factory=dict)
    _parts: dict[int, tuple[fx.GraphModule, fx.GraphModule] | None] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Device of the parameters; meta if there are none."""
        return next((one.device for one in self.network.parameters()), torch.device("meta"))

    @property
    def entry(self) -> fx.Node:
        """The node of the network's input."""
        entry: fx.Node = self.operations.entry
        return entry

    @property
    def starts(self) -> list[int]:
        """First operation of every segment."""
        sizes = [len(segment.nodes) for segment in self.segments]
        return [0, *itertools.accumulate(sizes[:-1])]

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """Keys of the network's `state_dict`."""
        return frozenset(self.network.state_dict())

    @functools.cached_property
    def joined(self) -> frozenset[int]:
        """Segments before which no cut is possible, because both sides use the same parameter or
        buffer."""
        first: dict[int, int] = {}
        between: set[int] = set()
        for at, segment in enumerate(self.segments):
            for tensor in itertools.chain.from_iterable(map(self._tensors, segment.nodes)):
                between.update(range(first.setdefault(id(tensor), at) + 1, at + 1))
        return frozenset(between)

    def _tensors(self, node: fx.Node) -> Iterable[Tensor]:
        """Parameters and buffers that operation `node` uses."""
        module = self.operations.module(node)
        if module is not None:
            return itertools.chain(module.parameters(), module.buffers())
        used = (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
        return [self._state[path] for path in used if path in self._state]

    @functools.cached_property
    def _state(self) -> dict[str, Any]:
        return tensors_by_key(self.network)

    def piece(self, at: int) -> fx.GraphModule:
        """Segment `at` as a module that shares its weights with the network."""
        if at not in self._pieces:
            self._pieces[at] = extract(self, at, at + 1)
        return self._pieces[at]

    def piece_without_pools(self, at: int) -> tuple[fx.GraphModule, fx.GraphModule] | None:
        """Segment `at` in two parts: up to the pools at its end, and these pools; None if it does
        not end in a pool."""
        if at not in self._parts:
            self._parts[at] = without_pools(self.piece(at))
        return self._parts[at]

    @functools.cached_property
    def signatures(self) -> list[str]:
        """Signature of every segment; equal for segments that do the same computation."""
        return [
            operations_signature(self.network, segment.nodes, segment.output)
            for segment in self.segments
        ]


def trace(network: nn.Module, watches_branches: bool = False) -> TracedNetwork:
    """Finds the segments of `network` without running it, on any device, including meta.

    Only the first argument of the forward is an input; the other arguments keep their defaults.

    Args:
        watches_branches: see `TracedNetwork`.

    Raises:
        ConfigError: the network cannot be traced, its operations differ between training and
            evaluation, or the network itself has hooks.
    """
    validate_network(network)
    operations = Operations(network, symbolic_graph(network))
    return TracedNetwork(network, operations, _segments(operations), watches_branches)


def _segments(operations: Operations) -> tuple[Segment, ...]:
    nodes = operations.nodes
    classifier = _classifier(operations)
    starts = [0, *_cuts(operations, classifier)]
    ends = [*starts[1:], len(nodes)]
    pieces = [tuple(nodes[start:end]) for start, end in zip(starts, ends, strict=True)]
    in_classifier = set(nodes[classifier:])
    owned = [
        [path for node in piece if node not in in_classifier for path in operations.weights(node)]
        for piece in pieces
    ]
    outputs: list[Argument] = [
        *(operations.alive(start)[0] for start in starts[1:]),
        operations.output,
    ]
    return tuple(map(Segment, _names(owned), pieces, outputs))


def _classifier(operations: Operations) -> int:
    """First operation of the classifier: the last flattening, if weights come before it."""
    nodes = operations.nodes
    last = max((at for at, node in enumerate(nodes) if operations.flattens(node)), default=0)
    return last if any(map(operations.weights, nodes[:last])) else len(nodes)


def _cuts(operations: Operations, classifier: int) -> list[int]:
    """The first operation of every segment but the first."""
    cuts: list[int] = []
    norms: list[int] = []
    begun = False
    for at, node in enumerate(operations.nodes[:classifier]):
        if not operations.weights(node):
            continue
        if operations.is_norm(node):
            if begun and not operations.weights(node.all_input_nodes[0]):
                norms.append(at)
            continue
        if begun:
            places = (place for place in (at, *reversed(norms)) if operations.can_cut(place))
            cuts += itertools.islice(places, 1)
        begun = True
        norms.clear()
    return cuts


def _names(owned: Sequence[Sequence[str]]) -> list[str]:
    """The name of every segment, from the paths of its weights."""
    names: list[str] = []
    for at, paths in enumerate(owned):
        block = _common_path(paths)
        others = itertools.chain(*owned[:at], *owned[at + 1 :])
        alone = block and not any(f"{path}.".startswith(f"{block}.") for path in others)
        names.append(block if alone else next(iter(paths), "network"))
    counts = Counter[str]()
    for at, name in enumerate(names):  # a second call of a module begins another segment
        counts[name] += 1
        names[at] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return names


def _common_path(paths: Sequence[str]) -> str:
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda at: len(set(at)) == 1, levels))


def tensors_by_key(module: nn.Module) -> dict[str, Any]:
    """Like `state_dict`, but with the parameters and buffers themselves, not detached."""
    return module.state_dict(keep_vars=True)


def extract(traced: TracedNetwork, first: int, end: int) -> fx.GraphModule:
    """Segments `first` to `end` - 1 as a module of one input."""
    segments = traced.segments
    nodes = itertools.chain.from_iterable(part.nodes for part in segments[first:end])
    return _extract(traced, first, nodes, segments[end - 1].output)


def extract_last_map(traced: TracedNetwork) -> fx.GraphModule | None:
    """The last segment up to the input of the network's classifier; None if the network does not
    flatten a map in front of a classifier."""
    operations = traced.operations
    classifier = _classifier(operations)
    if classifier == len(operations.nodes):
        return None
    nodes = operations.nodes[traced.starts[-1] : classifier]
    (output, *_) = operations.nodes[classifier].all_input_nodes
    if output not in nodes:
        return None
    return _extract(traced, len(traced.segments) - 1, nodes, output)


def _extract(
    traced: TracedNetwork, first: int, nodes: Iterable[fx.Node], output: Argument
) -> fx.GraphModule:
    """The operations `nodes`, from segment `first` on, as a module of one input."""
    graph = fx.Graph()
    entry = traced.segments[first - 1].output if first else traced.entry
    copies: dict[Argument, fx.Node] = {entry: graph.placeholder("batch")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node in traced.operations.sizes.rows:  # read from a tensor of another stage
                copies[node] = graph.call_method("size", (copies[entry], 0))
            else:  # weights, or a number computed from the number of rows
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(map_arg(output, copied))
    _shorten_lookups(graph)
    stage = fx.GraphModule(traced.network, graph, class_name="Segments")
    _keep_out_of_state(stage, traced.keys)
    if traced.watches_branches:
        watch_branches(stage)
    return stage


def _shorten_lookups(graph: fx.Graph) -> None:
    """Makes the generated code of `graph` access modules through `_modules`.

    Attribute access (`self.layers.conv`) searches the classes at every dot, which takes a fifth
    of the forward of a small network. Other code does not change.
    """
    short = {}
    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target).split(".")
            keys = "".join(f"._modules[{part!r}]" for part in path)
            short[f" = {functools.reduce(_dot, path, 'self')}("] = f" = self{keys}("

    def rewrite(lines: list[str]) -> list[str]:
        code = "".join(lines)
        for written, shorter in short.items():
            code = code.replace(written, shorter)
        return code.splitlines(keepends=True)

    graph.on_generate_code(lambda _: rewrite)


def _dot(owner: str, part: str) -> str:
    """Attribute access in the form that fx generates."""
    return f"{owner}.{part}" if part.isidentifier() else f'getattr({owner}, "{part}")'


def _keep_out_of_state(stage: fx.GraphModule, keys: Set[str]) -> None:
    """Makes buffers outside `keys` non-persistent, since fx registers every tensor as a persistent
    buffer."""
    for path, module in stage.named_modules():
        for name in module._buffers:
            if f"{path}.{name}".lstrip(".") not in keys:
                module._non_persistent_buffers_set.add(name)
