"""dglpipe: layer-parallel training by Decoupled Greedy Learning."""

__version__ = "0.1.0"
