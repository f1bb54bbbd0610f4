"""The evaluation of the pipeline equals one plain forward with the final weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dglpipe.data import Request, open_data
from dglpipe.pipeline.weights import load_tensors
from harness.configs import build_stages, layout, make_config
from harness.training import train_all

STAGES = 3
LEARNING = (f"pipeline.stages={STAGES}", "model.width=4", "epochs=2", "batch_size=75")
CASES = [
    # precision, rows of a test batch (of 360: the last has 60, 1 or all), processes
    ("fp32", 360, 3),
    ("fp32", 100, 3),
    ("fp32", 359, 3),
    ("fp32", 359, 1),
    ("bf16", 359, 3),
    ("bf16", 359, 1),
]


def config_of(precision, rows):
    settings = (*LEARNING, f"precision={precision}", f"evaluate.batch_size={rows}")
    return make_config(*settings, "evaluate.every=0", "model.dropout=0.1")


@pytest.fixture(scope="module")
def runs():
    """A run for every case."""
    result = {}
    for processes in (3, 1):
        cases = [case for case in CASES if case[2] == processes]
        configs = [config_of(precision, rows) for precision, rows, _ in cases]
        result |= zip(cases, train_all(configs, layout(STAGES, processes)), strict=True)
    return result


def plain_evaluation(config, tensors):
    """Accuracy and loss of every exit, and the accuracy of the ensemble, on the whole test set.

    The ensemble adds up the softmax of the exits with weights 1, 2, 4, ...
    """
    source = open_data(config.data, config.seed)
    rows = torch.arange(source.info.test)
    ((x, y),) = source.load().batches([Request(False, 1, rows)])
    spec = build_stages(config, source.info, STAGES)
    bf16 = config.precision.name == "bf16"
    exits, ensemble = [], torch.zeros(len(y), 10)
    for j in range(STAGES):
        learner = spec.learner(j)
        load_tensors(learner, tensors[0, j])
        learner.to(memory_format=torch.channels_last).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x = learner.segments(x)
            head = learner.auxiliary.get("head")
            logits = head(x) if head else x
            x = learner.output(x)
            loss = cross_entropy(logits, y)
        ensemble += 2**j * torch.softmax(logits.float(), dim=1)
        exits.append(((logits.argmax(dim=1) == y).float().mean().item(), loss.item()))
    return exits, (ensemble.argmax(dim=1) == y).float().mean().item()


@pytest.mark.parametrize("case", CASES)
def test_exits_and_ensemble_use_the_final_weights(case, runs):
    precision, rows, _ = case
    exits, ensemble = plain_evaluation(config_of(precision, rows), runs[case].tensors)
    lines = {line.stage: line for line in runs[case].tests()}
    assert lines.keys() == {0, 1, 2, "ensemble"}
    # In bf16, the rounding of a row can depend on the size of the batch.
    abs_, rel = (1e-6, 1e-4) if precision == "fp32" else (2 / 360, 0.01)
    for j, (accuracy, loss) in enumerate(exits):
        assert lines[j].accuracy == pytest.approx(accuracy, abs=abs_)
        assert lines[j].loss == pytest.approx(loss, rel=rel)
    assert lines["ensemble"].accuracy == pytest.approx(ensemble, abs=abs_)
    assert lines["ensemble"].loss is None
    assert exits[-1][0] > 0.2, "nothing was learnt, so all exits would be alike"
    assert len({loss for _, loss in exits}) == STAGES


def test_the_size_of_a_test_batch_leaves_the_weights_alone(runs):
    whole = runs["fp32", 360, 3]
    for rows in (100, 359):
        assert runs["fp32", rows, 3].hashes == whole.hashes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_does_not_depend_on_the_number_of_processes(precision, runs):
    one, three = (runs[precision, 359, processes].tests() for processes in (1, 3))
    assert one == three
    assert len(one) == STAGES + 1
