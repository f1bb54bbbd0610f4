"""A method from outside the package: trained, and checked before the first step."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import torch

from dglpipe.config import to_tree
from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import ConfigError
from dglpipe.methods import Dgl, build_method
from dglpipe.pipeline.message import Direction, contiguous_field
from dglpipe.runtime.plan import make_plan
from harness.configs import in_test_all, layout, make_config
from harness.training import hash_all

EXAMPLES = Path(__file__).parents[3] / "examples" / "method"
EXAMPLE = ("method=custom", "method.target=reconstruction:build")


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    """In this process, and in the processes that it starts."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), *sys.path]))


class TestExample:
    def test_is_short(self):
        assert len((EXAMPLES / "reconstruction.py").read_text().splitlines()) < 120

    @pytest.mark.parametrize("precision", ["fp32", in_test_all("bf16")])
    def test_equal_bits_for_one_process_and_one_a_stage(self, precision):
        config = make_config(*EXAMPLE, "pipeline.stages=3", f"precision={precision}")
        (alone,) = hash_all([config], layout(3, 1))
        (pipeline,) = hash_all([config], layout(3, 3))
        assert alone == pipeline

    def test_the_objective_changes_the_weights(self):
        plain = make_config("pipeline.stages=2")
        weights = [make_config(*EXAMPLE, f"method.args={{weight:{w}}}") for w in (0.0, 0.5)]
        none, some, dgl = hash_all([*weights, plain], layout(2, 1))
        assert none[1] == dgl[1]  # the last stage has no decoder and the same inputs
        assert none != some

    def test_modules_are_saved_under_their_names(self):
        config = make_config(*EXAMPLE, "pipeline.stages=2")
        plan = make_plan(config, layout(2, 1))
        assert [field.name for field in plan.extras(0)] == ["image"]
        assert plan.row_bytes(0) == plan.spec.row_bytes(0) + 64  # 8x8 pixels of a byte


def build(settings, fault="", **_):
    """A method with a fault."""
    return Faulty(settings, fault)


class Faulty(Dgl):
    def __init__(self, settings, fault):
        super().__init__(settings)
        self.fault = fault

    def messages(self, link, spec):
        shape, dtype = spec.image_shape, torch.uint8
        extra = contiguous_field("image", dtype, shape, phases=[Phase.TRAIN])
        if self.fault == "down":
            extra = contiguous_field("image", dtype, shape, Direction.DOWN, [Phase.TRAIN])
        if self.fault == "test":
            extra = contiguous_field("image", dtype, shape)
        declared = () if self.fault == "undeclared" else (extra,)
        return (*super().messages(link, spec), *declared)

    def outgoing(self, emission):
        rows, *shape = emission.inputs.shape
        if emission.stage:
            rows, *shape = emission.extras["image"].shape
        image = torch.zeros(rows, *shape, dtype=torch.uint8)
        if self.fault == "unfilled" and emission.stage == 1:
            return {}
        if self.fault == "dtype":
            return {"image": image.float()}
        if self.fault == "shape":
            return {"image": image[:, :, 1:]}
        return {"image": image}

    @property
    def objective(self):
        if self.fault == "no loss":
            return lambda batch: None
        if self.fault == "not a scalar":
            return lambda batch: batch.logits.sum(dim=0)
        if self.fault == "raises":
            return lambda batch: batch.extras["nothing"].sum()
        return None


FAULTS = {
    "unfilled": "custom, stage 1, tensor 'image': declared, but never filled",
    "undeclared": "custom, stage 0, tensor 'image': filled, but not declared",
    "dtype": "custom, stage 0, tensor 'image': torch.float32 of shape (2, 1, 8, 8)",
    "shape": "custom, stage 0, tensor 'image': torch.uint8 of shape (2, 1, 7, 8)",
    "no loss": "method: got 'an object of type NoneType in stage 0'",
    "not a scalar": "method: got 'a tensor of shape (10,) and type torch.float32 in stage 0'",
    "raises": "custom, stage 0: the local objective fails",
    "down": "custom, stage 0, tensor 'image': direction down",
    "test": "custom, stage 0, tensor 'image': declared for evaluations",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_before_the_first_step(fault):
    target = f"{__name__}:build"
    words = ("method=custom", f"method.target={target}", f"method.args={{fault:'{fault}'}}")
    config = make_config(*words, "pipeline.stages=3")
    with pytest.raises(ConfigError) as caught:
        make_plan(config, layout(3, 1))
    assert FAULTS[fault] in str(caught.value)
    assert "allowed: " in str(caught.value)


def test_without_a_fault_it_is_accepted():
    config = make_config("method=custom", f"method.target={__name__}:build", "pipeline.stages=3")
    assert make_plan(config, layout(3, 1)).extras(1)[0].name == "image"


def test_a_target_that_is_no_method_is_refused():
    config = make_config("method=custom", "method.target=torch.nn:Identity")
    with pytest.raises(ConfigError, match=r"method\.target: got 'torch.nn:Identity'"):
        build_method(config.method)


def test_a_missing_target_is_named():
    with pytest.raises(ConfigError, match=r"method\.target"):
        make_config("method=custom", "method.target=''")


@pytest.mark.parametrize("words", [("method=dgl",), ("method=backprop",), ("method=sequential",)])
def test_planning_leaves_the_configuration_alone(words):
    config = make_config(*words, "pipeline.split=auto")
    before = copy.deepcopy(to_tree(config))
    plan = make_plan(config, layout(1 if "backprop" in words[0] else 2, 1))
    assert to_tree(config) == before
    assert plan.config.pipeline.stages == plan.layout.stages
    with pytest.raises(AttributeError):
        plan.config = config


def test_a_method_without_extras_has_the_head_alone():
    plan = make_plan(make_config("pipeline.stages=2"), layout(2, 1))
    assert plan.extras(0) == ()
    assert isinstance(build_method(plan.config.method), Dgl)
