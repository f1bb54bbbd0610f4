"""A run from its first check to its summary.

May import every package but `cli`. `plan` turns a configuration into the plan of a run; `run` and
`launcher` start the processes of one machine, `torchrun` joins an outside launcher, and `worker` is
the entry point of each process. `trainer` is its loop. `failure` finds the cause of a failed run,
`checkpoint` and `resume` continue one, `inference` and `evaluate` use a finished one. Begin with
`plan` and `trainer`.
"""
