"""Weights of the first layer that are a function of training images."""

from __future__ import annotations

import torch

from dglpipe.config import FastCnnConfig
from dglpipe.data import DataSet, Request
from dglpipe.methods.run_plan import RunPlan
from dglpipe.models.fastcnn import SAMPLES, WHITENING, whitening
from dglpipe.pipeline.stage import Stage


def fit_first_layer(plan: RunPlan, data: DataSet, stage: Stage) -> None:
    """Computes the whitening of `fastcnn` from the first training images, augmented as in epoch 1.

    Does nothing for other networks, and for weights from a file. A function of seed and images.

    Args:
        stage: stage 0, at the beginning of a new run.
    """
    model = plan.config.model
    if not isinstance(model, FastCnnConfig) or model.weights is not None:
        return
    first = torch.arange(min(SAMPLES, plan.data.train))
    ((images, _),) = data.batches([Request(True, 1, first)])
    weight = stage.module.segments.get_parameter(WHITENING)
    with torch.no_grad():
        weight.copy_(whitening(images))
