"""Measurements of a run: timers, metrics, traces, and their display.

`timers` and `cuda_timers` measure the time of a process, `meters` sums losses and hits,
`throughput` selects the measured part of a run, `metrics` collects the records of all processes,
and `trace`, `progress` and `tensorboard` show them. Begin with `timers` and `metrics`. The package
imports the root modules, `config` and `data` of dglpipe.
"""
