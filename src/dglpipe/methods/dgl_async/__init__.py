"""Asynchronous decoupled greedy learning with a replay buffer (Algorithm 2 of the paper).

Begin with `method`, then `replay` (the buffer) and `simulation` on `draw_order`, or
`distributed` on `sender`, `receiver` and `progress_engine`.
"""
