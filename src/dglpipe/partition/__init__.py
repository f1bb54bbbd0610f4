"""From a network to balanced stages, and what they cost.

Imports `config`, `data`, `models` and `pipeline`. Begin with `segments` (traces a network into
segments, between which it can be cut) and `split` (cuts it into stages). `balance` balances the
stages: it finds the cut whose slowest stage costs least, by `flops` or by `profiling`; `auto_split`
runs it within the limit of `memory`. `staged_network` has all stages of a plan, `own_stages` builds
those of one process. `estimate` and `throughput_model` predict memory and speed of a run.
"""
