"""From a network to balanced stages, and what they cost.

Imports `config`, `data`, `models` and `pipeline`. Begin with `segments` (traces a network into
segments, between which it can be cut) and `split` (cuts it into stages). `balance` balances the
stages: it finds the cut whose slowest stage has the least cost, in FLOPs (`flops`) or in measured
seconds (`profiling`); `auto_split` adds the memory limit. `staged_network` builds all stages for a
plan, `own_stages` the stages of one process. `estimate` and `throughput_model` predict a run.
"""
