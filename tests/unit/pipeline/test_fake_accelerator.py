"""A whole step on a fake accelerator does not wait for the device.

On CUDA the host runs ahead of the device; a `.item()` or a blocking copy in the step would
make it wait in every step and hold up all links.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest

from harness.configs import in_test_all
from harness.worlds import fork_server
from unit.pipeline import ghost
from unit.pipeline.ghost_steps import FAULTY_LOSSES, run_steps

CLIP = "optimizer.clip=1"
LINEAR = "head=linear"
"""The quickest: each operation on fake tensors costs some milliseconds."""


@pytest.fixture(scope="module")
def accelerated():
    """Runs a function in a process that has the device, and gives its result."""
    context = fork_server()
    with ProcessPoolExecutor(1, context, initializer=ghost.register) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(60)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", CLIP, "label_smoothing=0.1"),
        in_test_all(("optimizer=adamw", "precision=bf16", LINEAR)),
        in_test_all(("precision=fp16", "model.dropout=0.1", LINEAR)),
        ("precision=fp16", CLIP, "optimizer=adam", "head=cnn"),
    ],
    ids=" ".join,
)
def test_a_step_does_not_wait_for_the_device(accelerated, overrides):
    status, sent = accelerated(run_steps, overrides)
    assert status == "ok", sent
    sizes = sent.split(", ")
    assert len(sizes) == 3
    assert all(size.endswith("on ghost") for size in sizes)


def test_foreach_optimizer_does_not_wait_either(accelerated):
    status, sent = accelerated(run_steps, (CLIP, LINEAR), foreach=True)
    assert status == "ok", sent


READS = "DataDependentOutputException"
FAULTS = {
    "loss.item()": READS,
    "if loss > 0": READS,
    "labels.tolist()": READS,
    "size from values": "DynamicOutputShapeException",
    "blocking .cpu()": "BlockingCopyError",
    "blocking .to()": "BlockingCopyError",
    "blocking copy_": "BlockingCopyError",
    "labels on the CPU": "FakeTensorDeviceMismatchError",
    "item() in backward": READS,
    "arrival on the CPU": "FakeTensorDeviceMismatchError",
    "totals": READS,
    "header check": READS,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_wait_is_found(accelerated, fault):
    """Faults are found; `totals` and `header check` wait on purpose, outside the step."""
    status, text = accelerated(run_steps, (LINEAR,), fault)
    assert status == FAULTS[fault], text


def test_every_faulty_loss_is_tried():
    assert FAULTY_LOSSES.keys() <= FAULTS.keys()
