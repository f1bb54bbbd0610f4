"""From a network to stages: segments, costs, memory, the best cut, and the modules of each stage.

Imports `config`, `data`, `models` and `pipeline`; never `methods`, `runtime` or `cli`.
Begin with `segments.py` (where a network can be cut) and `staged_network.py` (the stages of a
run). `auto_split.py` chooses the cut, `estimate.py` and `throughput_model.py` predict what a run
takes, and `own_stages.py` builds the stages of one process.
"""
