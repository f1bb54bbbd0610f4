"""Training runs: plan, processes, training loop, checkpoints and summary.

Imports every package except `cli`. `plan` turns a configuration into the plan of a run; `run`
checks and starts it; `launcher` starts the processes of one machine, notices one that dies and ends
the others; `torchrun` joins an outside launcher. `worker` is the entry point of each process and
`trainer` its loop. `failure` finds the cause of a failed run, `checkpoint` and `resume` continue an
interrupted run, `inference` and `evaluate` use a finished run. Begin with `plan` and `trainer`.
"""
