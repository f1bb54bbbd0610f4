"""The CUDA path on real devices: `pytest -m gpu`. Skipped where there is none.

`make gpu-check` runs the same checks at full length and writes a report.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from dglpipe.pipeline.device import Device, choose_backend, select
from harness.paths import GPU_CHECK

sys.path.append(str(GPU_CHECK))

from gpu_checks import Checks, plan_for
from gpu_runs import Runner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    plan = replace(plan_for(torch.cuda.device_count()), steps=200)
    return Checks(Runner(tmp_path_factory.mktemp("runs"), plan.settings), plan)


# `throughput` uses a result of `soak`, so the order matters.
@pytest.mark.parametrize("name", ["parity", "no_waiting", "soak", "kill", "throughput"])
def test_check(checks, name):
    result = getattr(checks, name)()
    if result["passed"] is None:
        pytest.skip(result["reason"])
    assert result["passed"], result


class TestDevice:
    @pytest.fixture
    def device(self) -> Device:
        return select(choose_backend("auto", 1), 0)

    def test_one_process_gets_the_gpu(self, device):
        assert device == Device(torch.device("cuda", 0), "nccl")

    def test_put_does_not_wait(self, device):
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = device.put(torch.arange(1000))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert batch.device == device.torch_device
        assert torch.equal(batch.cpu(), torch.arange(1000))

    def test_seed_reaches_dropout(self, device):
        batch = torch.ones(1000, device=device.torch_device)
        device.seed(5)
        first = torch.dropout(batch, 0.5, True)
        device.seed(5)
        assert torch.equal(first, torch.dropout(batch, 0.5, True))

    def test_peak_memory_counts_the_allocator(self, device):
        before = device.peak_memory()
        torch.empty(before + 2**20, dtype=torch.uint8, device=device.torch_device)
        assert device.peak_memory() >= before + 2**20

    def test_fp16_steps_scale_their_loss(self, device):
        scaler = device.scaler("fp16")
        weight = torch.ones(4, device=device.torch_device, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        with device.autocast("fp16"):
            loss = (weight * 2).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.allclose(weight.detach().cpu(), torch.full((4,), 0.8))
