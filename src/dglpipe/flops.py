"""Work of a stage, counted without doing it."""

from __future__ import annotations

import torch

from dglpipe.blueprint import Blueprint


def flops_per_sample(blueprint: Blueprint, j: int) -> int:
    """Floating-point operations of forward and backward of stage `j` with its head, for one
    sample; a multiply-add counts as 2.

    Args:
        blueprint: drawn on meta.
    """
    # Loads a compiler; nothing before the end of a run needs it.
    from torch.utils.flop_counter import FlopCounterMode

    rows = 2
    batch = torch.zeros(rows, *blueprint.input_shape(j), device="meta")
    learner = blueprint.learner(j)
    with FlopCounterMode(display=False) as counter:
        logits = learner(batch, None)
        logits.sum().backward()
    return int(counter.get_total_flops()) // rows
