"""A network as a graph of operations, and what has to be known of each operation.

Imports `torch.fx` and `errors` alone. Begin with `tracing.py`, which makes the graph, and
`graph.py`, which says where the graph can be cut.
"""
