import copy
import hashlib
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dglpipe.pipeline.stage_module import StageModule
from dglpipe.pipeline.weights import clashes, load, load_tensors, named_tensors, save, sha256


def learner():
    segments = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    return StageModule(segments.to(memory_format=torch.channels_last), {"head": nn.Linear(3, 4)})


def test_keys_are_the_networks_own_and_the_heads_are_marked():
    assert sorted(named_tensors(learner())) == [
        "0.bias",
        "0.weight",
        "1.bias",
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
        "1.weight",
        "head.bias",
        "head.weight",
    ]


def test_a_file_gives_back_what_was_saved(tmp_path):
    one, other = learner(), learner()
    save(tmp_path / "stage.safetensors", named_tensors(one))
    load_tensors(other, load(tmp_path / "stage.safetensors"))
    assert sha256(named_tensors(one)) == sha256(named_tensors(other))
    assert [item.name for item in tmp_path.iterdir()] == ["stage.safetensors"]


def test_a_missing_key_is_an_error():
    tensors = named_tensors(learner())
    del tensors["0.weight"]
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        load_tensors(learner(), tensors)


def test_the_classifier_of_a_network_may_be_called_head(tmp_path):
    segments = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.Linear(3, 2)))
    one, other = StageModule(segments), StageModule(copy.deepcopy(segments))
    nn.init.zeros_(other.segments.head.weight)
    load_tensors(other, named_tensors(one))
    assert sha256(named_tensors(one)) == sha256(named_tensors(other))
    assert clashes(one) == []
    assert clashes(StageModule(segments, {"head": nn.Linear(3, 2)})) == ["head.bias", "head.weight"]


def test_tied_weights_are_written_under_both_names(tmp_path):
    segments = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    segments[1].weight = segments[0].weight
    save(tmp_path / "stage.safetensors", named_tensors(StageModule(segments)))
    tensors = load(tmp_path / "stage.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])


def test_anyone_can_compute_the_fingerprint(tmp_path):
    tensors = named_tensors(learner())
    save(tmp_path / "stage.safetensors", tensors)
    digest = hashlib.sha256()
    with safe_open(tmp_path / "stage.safetensors", "numpy") as file:
        for key in sorted(file.keys()):
            digest.update(key.encode("utf-8"))
            digest.update(file.get_tensor(key).tobytes())
    assert digest.hexdigest() == sha256(tensors)


def test_the_fingerprint_sees_a_bit():
    tensors = named_tensors(learner())
    before = sha256(tensors)
    tensors["1.num_batches_tracked"] += 1
    assert sha256(tensors) != before


def test_bf16_has_a_fingerprint():
    assert len(sha256({"a": torch.ones(3, dtype=torch.bfloat16)})) == 64
