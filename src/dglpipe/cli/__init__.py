"""The commands of `dglpipe`.

`main` selects a command; each command is a module with a function of the same name. `compose` turns
arguments into a checked `Config`, with `arguments` and `config_groups`; `plan_table` formats the
output of `plan`, `train_help` the help of `train`. Begin with `main`. The package may import every
other package. Modules import torch in functions, so that the help text and errors in the arguments
appear at once.
"""
