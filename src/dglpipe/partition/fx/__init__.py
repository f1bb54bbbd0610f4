"""A network as a graph of operations, and the properties of the operations.

Imports only `torch.fx` and `errors`. Begin with `tracing`, which creates the graph, and `graph`,
which says after which operations a cut is possible; `partition.segments` makes segments of them.
"""
