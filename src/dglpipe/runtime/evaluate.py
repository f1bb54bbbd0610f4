"""Accuracy of every exit of a finished run, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dglpipe.config import Config
from dglpipe.data.batch_schedule import build_batch_schedule
from dglpipe.files import write_json
from dglpipe.methods.dgl import Chain
from dglpipe.models.losses import build_loss
from dglpipe.monitoring.timers import Timer
from dglpipe.partition.pipeline_spec import PipelineSpec, build_spec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import DataFeed
from dglpipe.pipeline.stage import RunLength, Stage
from dglpipe.pipeline.weights import load_final, load_tensors
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.run_dir import RunDir


def evaluate_run(path: Path) -> dict[str, Any]:
    """Evaluates the final weights below `path` and writes `evaluation.json`.

    Returns:
        The `test` part of the summary.

    Raises:
        RunDirError: `path` is not the directory of a finished run, or has been damaged.
    """
    run_dir = RunDir(path)
    result = _evaluate(run_dir.finished_config(), run_dir)
    write_json(run_dir.evaluation, result)
    return result


def load_stages(spec: PipelineSpec, run_dir: RunDir, length: RunLength) -> list[Stage]:
    """All stages of a run with their final weights."""
    config = spec.config
    loss = build_loss(config.method.loss, config.label_smoothing)
    device = Device(torch.device("cpu"), "gloo")
    stages = []
    for j in range(len(spec.modules)):
        learner = spec.learner(j)
        load_tensors(learner, load_final(run_dir.final(j), learner))
        stages.append(Stage(j, learner, config.stage(j), loss, device, length, config.seed))
    return stages


def _evaluate(config: Config, run_dir: RunDir) -> dict[str, Any]:
    config.pipeline.replicas = 1
    source = open_images(config)
    plan = build_batch_schedule(config, source)
    count = config.pipeline.stages or 1
    spec = build_spec(config, source.info, count)
    stages = load_stages(spec, run_dir, RunLength(plan.steps_per_round, plan.steps_per_epoch))
    chain = Chain(stages, dict(enumerate(spec.fields)), None, Timer(), count)
    items = list(plan.items(done=plan.steps))
    device = Device(torch.device("cpu"), "gloo")
    feed = DataFeed(source.load(), plan.train, items, config.seed, device)
    chain.eval_mode(True)
    for _ in items:
        chain.evaluate(feed.take())
    feed.close()
    tests = [stage.test_totals() if stage.learner.is_exit else None for stage in stages]
    return {
        "accuracy": [test.correct / test.rows if test else None for test in tests],
        "ensemble_accuracy": (chain.ensemble_hits() or 0) / plan.test,
        "loss": [test.loss / test.rows if test else None for test in tests],
    }
