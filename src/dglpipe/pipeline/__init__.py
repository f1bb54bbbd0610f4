"""Stages, messages and links, and the processes and devices that run them.

A `stage` computes outputs, its local loss and its update; the outputs leave as a `message` over a
`link`, which posts receives ahead and owns the buffers. `transport` defines the transfers of a
link, and `p2p`, `emulated_transport` and `checked_transport` implement them. `topology` assigns
stages to processes, `process_group` connects them, `lr_schedule` has the learning rate of a step,
and `device` hides the differences between CPU and CUDA. Begin with `stage` and `link`. The package
imports the root modules, `config`, `data`, `models` and `monitoring`.
"""
