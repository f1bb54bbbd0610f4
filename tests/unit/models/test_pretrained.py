"""Initial weights from a file."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from dglpipe.config import parse, to_tree, to_yaml
from dglpipe.errors import ConfigError
from dglpipe.files import write_json, write_whole
from dglpipe.models import build_network
from dglpipe.models.meta import building
from dglpipe.models.pretrained import initialise
from dglpipe.runtime.run_dir import RunDir
from harness.configs import make_config


def network(seed=0, meta=False, width=4):
    with building(meta, seed):
        return build_network(make_config(f"model.width={width}").model, 1, 10, 8)


def written(path, tensors):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "wrapped.pth"])
def test_every_tensor_equals_the_file(tmp_path, name):
    source, target = network(seed=1).state_dict(), network(seed=2)
    tree = {"epoch": 3, "state_dict": source} if name.startswith("wrapped") else source
    path = written(tmp_path / name, tree)
    initialise(target, path)
    loaded = target.state_dict()
    assert loaded.keys() == source.keys()
    assert all(torch.equal(loaded[key], source[key]) for key in source)


@pytest.mark.parametrize("meta", [False, True])
def test_keys_that_do_not_fit_are_named(tmp_path, meta):
    tensors = network().state_dict()
    first, second, *_ = tensors
    tensors["extra.weight"] = tensors.pop(first)
    tensors[second] = torch.zeros(3)
    path = written(tmp_path / "other.safetensors", tensors)
    with pytest.raises(ConfigError) as caught:
        initialise(network(meta=meta), path)
    text = str(caught.value)
    assert text.startswith(f"model.weights: got '{path}'")
    assert f"missing: {first};" in text
    assert "unexpected: extra.weight;" in text
    assert f"of another shape: {second} (3,) where the network has" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_named(tmp_path, dtype):
    tensors = network().state_dict()
    first, *_ = tensors
    tensors[first] = tensors[first].to(dtype)
    path = written(tmp_path / "other.pt", tensors)
    with pytest.raises(ConfigError, match=f"of another kind of number: {first} {dtype} where"):
        initialise(network(), path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_of_another_precision_are_converted(tmp_path, dtype):
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value.to(torch.int32)
        for key, value in network(seed=1).state_dict().items()
    }
    target = network(seed=2)
    initialise(target, written(tmp_path / "other.safetensors", tensors))
    assert all(torch.equal(one.to(tensors[k].dtype), tensors[k]) for k, one in state(target))


def state(network):
    return network.state_dict().items()


def test_many_keys_are_counted(tmp_path):
    path = written(tmp_path / "empty.pt", {})
    count = len(network().state_dict())
    with pytest.raises(ConfigError, match=f"and {count - 5} more"):
        initialise(network(), path)


class Harmful:
    def __reduce__(self):
        return print, ("run on load",)


def test_a_file_cannot_run_code(tmp_path, capsys):
    path = tmp_path / "harmful.pt"
    path.write_bytes(pickle.dumps({"weight": Harmful()}))
    with pytest.raises(ConfigError, match=r"^model\.weights: got .*contains only tensors"):
        initialise(network(), str(path))
    assert capsys.readouterr().out == ""


def refusal(path):
    """The error about a file, without torch's advice to execute its contents."""
    with pytest.raises(ConfigError) as caught:
        initialise(network(), str(path))
    text = str(caught.value)
    assert "\x1b" not in text
    assert "weights_only" not in text
    return text.rpartition("tensors. ")[2]


def test_a_file_with_a_whole_network_is_refused(tmp_path):
    torch.save(network(), tmp_path / "whole.pt")
    message = refusal(tmp_path / "whole.pt")
    assert message.startswith("It contains a dglpipe.models.cnn.Cnn: save network.state_dict() i")
    (tmp_path / "text.pt").write_text("no tensors in here")
    assert refusal(tmp_path / "text.pt") == "The file has neither format, or it is damaged"


def test_a_wrong_file_suffix_is_reported(tmp_path):
    save_file(network().state_dict(), tmp_path / "weights.bin")
    assert "a name that ends in .safetensors" in refusal(tmp_path / "weights.bin")
    torch.save(network().state_dict(), tmp_path / "weights.safetensors")
    assert "a name that ends in .pt" in refusal(tmp_path / "weights.safetensors")


def test_an_entry_that_is_not_a_tensor_is_named(tmp_path):
    tree = {"model_state_dict": network().state_dict(), "epoch": 3}
    message = refusal(written(tmp_path / "trainer.pt", tree))
    assert message.startswith("Key 'model_state_dict' contains OrderedDict; the dictionary of ten")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt"])
def test_a_damaged_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no tensors in here")
    with pytest.raises(ConfigError, match=r"^model\.weights: got .*contains only tensors"):
        initialise(network(), str(path))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="The file does not exist"):
        initialise(network(), str(tmp_path / "missing.pt"))


def test_weights_of_torchvision_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = make_config("model=torchvision", "model.name=squeezenet1_1").model
    config.weights = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    with pytest.raises(ConfigError, match="Weights are not downloaded: save https://"):
        build_network(config, 3, 1000, 64)
    drawn = make_config("model=torchvision", "model.name=squeezenet1_1").model
    source = build_network(drawn, 3, 1000, 64).state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    written(cache / "squeezenet1_1-b8a52dc0.pth", source)
    loaded = build_network(config, 3, 1000, 64).state_dict()
    assert all(torch.equal(loaded[key], source[key]) for key in source)
    with pytest.raises(ConfigError, match=r"of another shape: classifier\.1\.weight"):
        build_network(config, 3, 10, 64)


@pytest.mark.parametrize(("weights", "given"), [("GoogLeNet_Weights.DEFAULT", True), (None, None)])
def test_transform_input_is_kept_without_the_published_weights(weights, given, tmp_path):
    """`load` and `evaluate` build the trained network without its initial weights."""
    config = make_config("model=torchvision")
    tree = to_tree(config)
    tree["model"] |= {"name": "googlenet", "weights": weights}
    run_dir = RunDir(tmp_path)
    write_whole(run_dir.config, to_yaml(parse(tree)))
    write_json(run_dir.summary, {"status": "finished"})
    assert (run_dir.finished_config().model.args or {}).get("transform_input") is given


def test_an_unknown_member_of_the_enums():
    with pytest.raises(ConfigError, match="ResNet50_Weights has IMAGENET1K_V1, IMAGENET1K_V2"):
        initialise(network(), "ResNet50_Weights.NO_SUCH")
    with pytest.raises(ConfigError, match="a member of torchvision's enums"):
        initialise(network(), "NoNet_Weights.DEFAULT")


def test_files_of_older_versions_are_read(tmp_path):
    """Without zip and without the counters of batch norm, as torchvision's files of 2017."""
    source = {
        key: value
        for key, value in network(seed=1).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    path = tmp_path / "old.pth"
    torch.save(source, path, _use_new_zipfile_serialization=False)
    target = network(seed=2)
    initialise(target, str(path))
    assert all(torch.equal(target.state_dict()[key], source[key]) for key in source)


@pytest.mark.slow
def test_keys_of_published_densenets_are_renamed(tmp_path):
    from torchvision.models import densenet121

    with building(False, 1):
        source = densenet121(num_classes=10)
    names = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", key): value
        for key, value in source.state_dict().items()
    }
    assert names.keys() != source.state_dict().keys()
    path = written(tmp_path / "densenet.pt", names)
    with building(True, 2):
        initialise(densenet121(num_classes=10), path)
    target = densenet121(num_classes=10)
    initialise(target, path)
    assert all(torch.equal(one, source.state_dict()[k]) for k, one in target.state_dict().items())
