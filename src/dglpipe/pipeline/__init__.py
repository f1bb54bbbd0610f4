"""Stages, messages and links, and the processes and devices that run them.

A `stage` trains on its inputs (`inputs`) and sends a `message` over a `link`. `transport` defines
the transfers of a link, and `p2p`, `emulated_transport` and `checked_transport` implement them.
`topology` assigns stages to processes, `process_group` connects the processes, and `device` hides
the differences between CPU and CUDA. Begin with `stage` and `link`. The package imports the root
modules, `config`, `data`, `models` and `monitoring`.
"""
