"""A network as a graph of operations, and the properties of the operations.

Imports only `torch.fx` and `errors`. Begin with `tracing.py`, which creates the graph, and
`graph.py`, which finds the possible cuts of the graph.
"""
