"""Decisions of the device module, without a GPU."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import dglpipe
from dglpipe.errors import ConfigError, DeviceError
from dglpipe.pipeline import device
from dglpipe.pipeline.device import Device, check_precision, choose_backend, select

PACKAGE = Path(dglpipe.__file__).parent
CPU = Device(torch.device("cpu"), "gloo")


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch report `count` CUDA devices."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


class TestOnePlaceForTheDevice:
    def test_no_other_module_names_cuda(self):
        named = {
            path.relative_to(PACKAGE).as_posix()
            for path in PACKAGE.rglob("*.py")
            if re.search(r"\btorch\.(backends\.)?(cuda|cudnn)\b|['\"]cuda", path.read_text())
        }
        assert named == {"pipeline/device.py"}

    def test_at_most_100_lines(self):
        assert len(Path(device.__file__).read_text().splitlines()) <= 100


class TestChooseBackend:
    @pytest.mark.parametrize(
        ("count", "processes", "expected"),
        [(0, 1, "gloo"), (1, 1, "nccl"), (1, 2, "gloo"), (4, 4, "nccl"), (4, 2, "nccl")],
    )
    def test_auto_wants_a_gpu_for_every_process(self, gpus, count, processes, expected):
        gpus(count)
        assert choose_backend("auto", processes) == expected

    def test_gloo_is_taken_even_where_there_are_gpus(self, gpus):
        gpus(8)
        assert choose_backend("gloo", 2) == "gloo"

    @pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 2), (3, 4)])
    def test_nccl_without_enough_gpus_is_refused(self, gpus, count, processes):
        gpus(count)
        with pytest.raises(DeviceError) as caught:
            choose_backend("nccl", processes)
        text = str(caught.value)
        assert text.startswith("pipeline.backend: got 'nccl'; allowed: ")
        assert str(count) in text
        assert str(processes) in text

    def test_devices_that_are_not_available_do_not_count(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert choose_backend("auto", 1) == "gloo"


class TestCheckPrecision:
    @pytest.mark.parametrize(
        ("precision", "backend"),
        [("fp32", "gloo"), ("bf16", "gloo"), ("fp32", "nccl"), ("bf16", "nccl"), ("fp16", "nccl")],
    )
    def test_allowed(self, precision, backend):
        check_precision(precision, backend)

    def test_fp16_without_cuda_is_refused(self):
        with pytest.raises(ConfigError, match=r"^precision: got 'fp16'; allowed: fp32, bf16"):
            check_precision("fp16", "gloo")


class TestSelect:
    def test_nccl_takes_the_device_of_the_local_rank(self):
        chosen = select("nccl", 3)
        assert chosen == Device(torch.device("cuda", 3), "nccl")
        assert chosen.is_cuda

    def test_gloo_computes_on_the_cpu(self):
        assert select("gloo", 3) == CPU
        assert not CPU.is_cuda


class TestSeed:
    def test_reaches_dropout(self):
        batch = torch.ones(100)
        CPU.seed(7)
        first = torch.dropout(batch, 0.5, True)
        assert not torch.equal(first, torch.dropout(batch, 0.5, True))
        CPU.seed(7)
        assert torch.equal(first, torch.dropout(batch, 0.5, True))

    def test_takes_every_seed_that_is_derived(self):
        CPU.seed(0)
        CPU.seed(2**63 - 1)

    def test_on_cuda_only_the_own_generator_is_seeded(self, monkeypatch):
        generators = [torch.Generator(), torch.Generator()]
        monkeypatch.setattr(torch.cuda, "default_generators", generators)
        others = generators[0].initial_seed(), torch.default_generator.initial_seed()
        select("nccl", 1).seed(11)
        assert generators[1].initial_seed() == 11
        assert others == (generators[0].initial_seed(), torch.default_generator.initial_seed())


class TestAutocast:
    def test_a_new_context_each_time(self):
        assert CPU.autocast("bf16") is not CPU.autocast("bf16")

    def test_a_new_autocast_context_sees_changed_weights(self):
        """One context over two forwards would give the first cast of the weight twice."""
        layer, batch = torch.nn.Linear(2, 2), torch.ones(1, 2)
        with CPU.autocast("bf16"):
            before = layer(batch)
        with torch.no_grad():
            layer.weight += 1
        with CPU.autocast("bf16"):
            after = layer(batch)
        assert before.dtype is after.dtype is torch.bfloat16
        assert not torch.equal(before, after)

    def test_fp32_does_not_cast(self):
        with CPU.autocast("fp32"):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is torch.float32


def test_only_fp16_has_a_scaler():
    assert CPU.scaler("fp32") is None
    assert CPU.scaler("bf16") is None
    assert isinstance(CPU.scaler("fp16"), torch.amp.GradScaler)


def test_put_keeps_the_values():
    batch = torch.arange(6).reshape(2, 3)
    assert torch.equal(CPU.put(batch), batch)


def test_peak_memory_is_the_peak_of_the_process():
    assert CPU.peak_memory() > 50 * 2**20


class TestPrepare:
    @pytest.fixture(autouse=True)
    def calls(self, monkeypatch):
        """The calls that set determinism in torch; the first real one takes seconds."""
        calls, threads = [], torch.get_num_threads()
        monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        yield calls
        torch.set_num_threads(threads)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

    def test_threads_and_determinism(self, calls):
        CPU.prepare(threads=1, deterministic=False)
        assert torch.get_num_threads() == 1
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        CPU.prepare(threads=1, deterministic=True)
        assert calls == [False, True]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    def test_the_users_cublas_setting_is_kept(self, monkeypatch):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        CPU.prepare(threads=1, deterministic=True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

    def test_cuda_process_computes_on_its_own_device(self, monkeypatch):
        chosen = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        select("nccl", 1).prepare(threads=1, deterministic=False)
        assert chosen == [torch.device("cuda", 1)]
        assert torch.backends.cudnn.benchmark
        select("nccl", 1).prepare(threads=1, deterministic=True)
        assert not torch.backends.cudnn.benchmark
