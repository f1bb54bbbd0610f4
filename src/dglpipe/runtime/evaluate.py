"""Evaluates every exit of a finished run, in one process."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dglpipe.data.batch_schedule import build_batch_schedule
from dglpipe.files import write_json
from dglpipe.methods.base import Method
from dglpipe.methods.registry import build_run_method
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.exits import ExitEvaluator
from dglpipe.pipeline.inputs import DataInputs
from dglpipe.pipeline.stage import RunLength, Stage
from dglpipe.pipeline.weights import load_tensors
from dglpipe.runtime.finished_run import FinishedRun
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.trust_words import Words

CPU = Device(torch.device("cpu"), "gloo")


def evaluate_run(path: Path, trust: Words = ()) -> dict[str, Any]:
    """Evaluates the final weights of the run in `path` and writes `evaluation.json`.

    Args:
        trust: names and files of the plug-ins that may be imported.

    Returns:
        The `test` part of the summary.

    Raises:
        RunDirError: `path` is not the directory of a finished run, a file is damaged, or
            the run names a plug-in that may not be imported.
        LoadingError: a loading process ended, failed or is too slow, or has no memory.
    """
    run = FinishedRun.open(path, trust)
    config = run.config
    config = replace(config, pipeline=replace(config.pipeline, replicas=1))
    source = open_images(config)
    count = config.pipeline.stages or 1
    method = build_run_method(config, count, source.info)
    schedule = build_batch_schedule(config, source, method.rounds(count))
    network = build_staged_network(config, method, source.info, count)
    length = RunLength(schedule.steps_per_round, schedule.steps_per_epoch)
    stages = load_stages(network, method, run, length)
    exits = ExitEvaluator(stages, dict(enumerate(network.spec.fields)), None, count)
    items = schedule.last_tests()
    inputs = DataInputs(source.load(), schedule, items, config.seed, CPU)
    for stage in stages:
        stage.eval_mode(True)
    with contextlib.closing(inputs):
        for _ in items:
            exits.evaluate(inputs.take())
    tests = [stage.test_totals() if stage.module.is_exit else None for stage in stages]
    result = {
        "accuracy": [test.correct / test.rows if test else None for test in tests],
        "ensemble_accuracy": (exits.ensemble_hits() or 0) / schedule.test,
        "loss": [test.loss / test.rows if test else None for test in tests],
    }
    write_json(RunDir(path).evaluation, result)
    return result


def load_stages(
    network: StagedNetwork, method: Method, run: FinishedRun, length: RunLength
) -> list[Stage]:
    """All stages of a run with their final weights."""
    config = network.config
    stages = []
    for j in range(network.spec.stages):
        module = network.learner(j)
        load_tensors(module, run.weights(j, module))
        learning = method.learning(j, config.label_smoothing)
        stages.append(Stage(j, module, config.stage(j), learning, CPU, length, config.seed))
    return stages
