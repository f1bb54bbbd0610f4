"""Stages, messages and links, and the processes and devices that run them.

A `stage` computes outputs, its local loss and its update. A `link` sends batches (`Sender`), posts
the receives of the next batches (`Receiver`), and says which of its slots may be overwritten;
`transport` defines the transfers of a link, and `p2p`, `emulated_transport` and `checked_transport`
implement them. `topology` assigns stages to processes, `process_group` connects them through the
store of `stores`, `lr_schedule` has the learning rate of a step, `device` the differences between
CPU and CUDA. Begin with `stage` and `link`. Imports the root modules, `config`, `data`, `models`
and `monitoring`.
"""
