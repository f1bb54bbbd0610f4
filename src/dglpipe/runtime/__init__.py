"""Training runs: plan, processes, training loop, checkpoints and summary.

Imports every package except `cli`. `plan` turns a configuration into the plan of a run; `run` and
`launcher` start the processes of one machine, `torchrun` joins an outside launcher, and `worker` is
the entry point of each process. `trainer` is the training loop. `failure` finds the cause of a
failed run, `checkpoint` and `resume` continue an interrupted run, `inference` and `evaluate` use a
finished run. Begin with `plan` and `trainer`.
"""
