"""Pools at the end of a traced module, which the auxiliary modules of a stage read in front of."""

from __future__ import annotations

from torch import fx, nn

from dglpipe.partition.fx.signature import name_of

_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.FractionalMaxPool2d,
    nn.LPPool2d,
)
_POOL_FUNCTIONS = {
    *("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"),
    *("fractional_max_pool2d", "lp_pool2d"),
}
_AFTER_POOLS = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that may follow a pool: they neither change the size nor combine values."""


def pools_at_end(module: fx.GraphModule) -> list[fx.Node]:
    """The operations from the first to the last pool at the end of `module`, and what follows
    them; empty if it does not end in a pool, or is nothing but pools."""
    end = next(node for node in module.graph.nodes if node.op == "output").args[0]
    found: list[fx.Node] = []
    first = 0
    node = end
    while isinstance(node, fx.Node) and len(node.users) == len(node.all_input_nodes) == 1:
        is_pool = _is_pool(module, node)
        if not is_pool and not _may_follow(module, node):
            break
        found.append(node)
        if is_pool:
            first = len(found)
        (node,) = node.all_input_nodes
    if isinstance(node, fx.Node) and node.op == "placeholder":
        return []
    return found[:first][::-1]


def split_pools(module: fx.GraphModule) -> fx.GraphModule | None:
    """Removes the pools at the end of `module`, and returns them as a module of their own; None if
    it does not end in a pool."""
    pools = pools_at_end(module)
    if not pools:
        return None
    (read,) = pools[0].all_input_nodes
    tail = _module(module, pools, read)
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = (read,)
    for node in reversed(pools):
        module.graph.erase_node(node)
    module.recompile()
    return tail


def without_pools(module: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Copies of the parts of `module` in front of and from the first pool at its end, which share
    its weights; None if it does not end in a pool."""
    pools = pools_at_end(module)
    if not pools:
        return None
    (read,) = pools[0].all_input_nodes
    *nodes, _ = module.graph.nodes
    body = [node for node in nodes if node not in pools and node.op != "placeholder"]
    entry = next(node for node in nodes if node.op == "placeholder")
    return _module(module, body, entry, read), _module(module, pools, read)


def _module(
    owner: fx.GraphModule, nodes: list[fx.Node], entry: fx.Node, output: fx.Node | None = None
) -> fx.GraphModule:
    """The operations `nodes` of `owner` as a module of one input, which stands for `entry`."""
    graph = fx.Graph()
    copies = {entry: graph.placeholder("batch")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[nodes[-1] if output is None else output])
    return fx.GraphModule(owner, graph, class_name="Part")


def _is_pool(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        one = module.get_submodule(str(node.target))
        return isinstance(one, _POOLS) and not getattr(one, "return_indices", False)
    return name_of(node) in _POOL_FUNCTIONS


def _may_follow(module: fx.GraphModule, node: fx.Node) -> bool:
    called = node.op == "call_module"
    return called and isinstance(module.get_submodule(str(node.target)), _AFTER_POOLS)
