"""Asynchronous decoupled greedy learning with a replay buffer (Algorithm 2 of the paper).

Begin with `method`, then `replay`: the buffer, which picks the batch that a stage reads next.
`distributed` runs a stage per process, with `sender`, `receiver` and `progress_engine`;
`simulation` runs all stages in one process, in the order of `draw_order`. Both share `base` and
`updates`; `storage` keeps stored batches, `staleness` counts the ages of what was read.
"""
