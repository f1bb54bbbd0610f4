"""Training runs: plan, processes, training loop, checkpoints and summary.

Imports every package except `cli`. `plan` turns a configuration into the plan of a run; `run`
checks and starts it; `launcher` starts the processes of one machine, notices one that dies and ends
the others; `torchrun` joins an outside launcher. `worker` is the entry point of each process,
`trainer` its loop. `checkpoint` writes and reads checkpoints, `resume` continues a run, `failure`
finds the cause of a failed one, `inference` and `evaluate` use a finished one. Begin with `plan`
and `trainer`.
"""
