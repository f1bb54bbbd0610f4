"""Local objectives: what a stage minimises. One file per objective.

Begin with `base`: the interface, and the objective `task`. `registry` builds the objectives of a
run.
"""
