"""A target is checked before the call: a class or function that gives the announced kind."""

from __future__ import annotations

import functools
import sys
from types import ModuleType, SimpleNamespace
from typing import Protocol

import pytest
import torch
from torch import nn

from dglpipe.config import CustomMethodConfig, CustomModelConfig, PluginConfig
from dglpipe.data.custom import CustomSource
from dglpipe.errors import ConfigError
from dglpipe.methods import build_method
from dglpipe.models import build_network
from dglpipe.models.heads import build_head
from dglpipe.models.losses import build_loss

BUILDERS = {
    "model": lambda target, args: build_network(
        CustomModelConfig(target=target, args=args), 1, 2, 8
    ),
    "head": lambda target, args: build_head(PluginConfig(target=target, args=args), 4, (2, 2), 3),
    "data": lambda target, args: CustomSource(PluginConfig(target=target, args=args), 0).info,
    "method": lambda target, args: build_method(CustomMethodConfig(target=target, args=args)),
    "method.loss": lambda target, args: build_loss(PluginConfig(target=target, args=args), 0.0),
}
"""Group -> what a run does with a plug-in of the group."""


def refused(group: str, target: str, **args: object) -> str:
    """The message of the error for a target that is refused before it is called."""
    with pytest.raises(ConfigError) as caught:
        BUILDERS[group](target, args)
    text = str(caught.value)
    assert text.startswith(f"{group}.target: got {target!r}; allowed: ")
    return text


COMMANDS = [
    *("os.system", "posix:system", "sys.exit", "os._exit", "subprocess.run", "subprocess:Popen"),
    *("builtins.exec", "builtins:eval", "builtins.print", "builtins:dict", "shutil.rmtree"),
    *("pickle.load", "pickle:Unpickler", "importlib.import_module", "functools.partial"),
    *("pathlib:Path.unlink", "types.SimpleNamespace", "antigravity:webbrowser.open"),
]


@pytest.mark.parametrize("group", BUILDERS)
@pytest.mark.parametrize("target", COMMANDS)
def test_the_standard_library_is_refused_and_not_imported(group, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "antigravity", None)  # its import opens a browser
    assert "belongs to the standard library of Python" in refused(group, target)


INSTALLED = [
    *("torch.load", "torch.save", "torch:hub.load", "torch.hub.load", "torch.jit.load"),
    *("torch.fx.graph_module.reduce_graph_module", "torch.compile", "torch.utils.data.DataLoader"),
    *("torch.nn.functional.cross_entropy", "torch.nn:functional.torch.load"),
    *("torch.utils.tensorboard:SummaryWriter", "torch.utils.model_dump.__main__:main"),
    *("numpy.load", "numpy.memmap", "hydra.utils.instantiate", "hydra.utils:call", "pytest.main"),
    *("torch.nn.Module.load_state_dict", "torchvision.datasets.folder:default_loader"),
    *("dglpipe.config.instantiate:build_plug_in", "dglpipe.cli.main:run"),
    *("torch.nn:__loader__.load_module", "torch.nn:__spec__.loader.exec_module"),
    *("torch.nn:Module.__class__", "torch.nn:Module.__init__.__globals__.get"),
    *("torch.nn.modules.loss:os.system", "torch.serialization:os.system"),
]
"""Targets in installed packages that give something else, or do something else."""


@pytest.mark.parametrize("group", BUILDERS)
@pytest.mark.parametrize("target", INSTALLED)
def test_installed_packages_give_only_what_shows_its_kind(group, target, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dglpipe"])
    refused(group, target)


OTHER_KIND = [
    ("model", "torch.optim.SGD", "torch.optim.sgd.SGD is a class of other objects"),
    ("head", "dglpipe.methods:Dgl", "is a class of other objects"),
    ("method", "torch.nn:Identity", "torch.nn.modules.linear.Identity is a class of other objects"),
    ("method.loss", "torch.Tensor", "a function or module of (logits, labels)"),
    ("data", "torchvision.datasets:FakeData", "is a class of other objects"),
    ("model", "torchvision.ops:nms", "torchvision.ops.boxes.nms returns Tensor"),
    ("method.loss", "numpy:load", "does not say what it returns; annotate it, or call it in a"),
    ("head", "torch.hub:load", "is a function of torch, and only classes of torch are builders"),
]


@pytest.mark.parametrize(("group", "target", "reason"), OTHER_KIND)
def test_the_message_says_why(group, target, reason):
    assert reason in refused(group, target)


def test_what_libraries_provide_is_built():
    network = build_network(
        CustomModelConfig(target="torchvision.models.resnet18", args={"num_classes": 2}), 3, 2, 8
    )
    assert isinstance(network, nn.Module)
    assert isinstance(BUILDERS["head"]("torch.nn:Identity", {}), nn.Identity)
    assert isinstance(BUILDERS["method.loss"]("torch.nn.CrossEntropyLoss", {}), nn.Module)
    assert BUILDERS["method"]("dglpipe.methods:Dgl", {}).name == "custom"


class Own(nn.Module):
    """A network, a head, a loss."""

    @classmethod
    def wide(cls):
        return cls()


class Data:
    """A data set whose splits are set by the constructor."""

    def __init__(self):
        self.train = self.test = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])


def unannotated():
    return Own()


def annotated() -> nn.Module:
    return Own()


def vague() -> object:
    return Own()


def either() -> nn.Module | None:
    return Own()


class Shape(Protocol):
    """A type for type checkers only."""

    side: int


def protocol() -> Shape:
    return Own()


def unknown() -> NotThere:  # noqa: F821
    return Own()


partial = functools.partial(unannotated)
cached = functools.lru_cache(unannotated)


OWN = ("Own", "Own.wide", "unannotated", "annotated", "vague", "either", "protocol", "unknown")


@pytest.mark.parametrize("group", ["model", "head", "method.loss"])
@pytest.mark.parametrize("name", [*OWN, "partial", "cached"])
def test_classes_and_functions_of_the_user_are_built(group, name):
    assert isinstance(BUILDERS[group](f"{__name__}:{name}", {}), Own)


def test_a_data_set_of_the_user_may_set_its_splits_in_the_constructor():
    assert BUILDERS["data"](f"{__name__}:Data", {}).train == 4


def number() -> int:
    pytest.fail("called")


def nothing() -> None:
    pytest.fail("called")


def text_or_nothing() -> str | None:
    pytest.fail("called")


wrapped = functools.lru_cache(number)
of_c = functools.partial(len, [])
instance = Data()


@pytest.mark.parametrize("group", BUILDERS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("number", f"{__name__}.number returns int"),
        ("nothing", f"{__name__}.nothing returns NoneType"),
        ("text_or_nothing", "returns str or NoneType"),
        ("wrapped", "returns int"),
        ("of_c", f"{__name__}:of_c is of type builtin_function_or_method"),
        ("instance", f"{__name__}:instance is of type Data"),
        ("SimpleNamespace", "types belongs to the standard library"),
        ("functools.reduce", "'functools' is the module functools: write its full name"),
    ],
)
def test_other_objects_of_the_user_are_not_called(group, name, reason):
    assert reason in refused(group, f"{__name__}:{name}")


assert SimpleNamespace  # in the names of this module


@pytest.mark.parametrize("group", ["model", "head", "method.loss"])
def test_installed_code_is_named_where_it_is_defined(group, monkeypatch):
    module = ModuleType("own_names")
    module.load, module.Loss = torch.load, nn.MSELoss
    monkeypatch.setitem(sys.modules, "own_names", module)
    expected = "It is defined in torch.serialization: name it there"
    assert expected in refused(group, "own_names:load")
    assert f"{group}.target=torch.nn.modules.loss:MSELoss" in refused(group, "own_names:Loss")


def ends():
    sys.exit(0)


def test_a_builder_that_exits_is_an_error():
    with pytest.raises(ConfigError, match=r"^model\.args: .*raises SystemExit: 0"):
        BUILDERS["model"](f"{__name__}:ends", {})


def test_a_module_that_exits_is_an_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    assert "its import fails: SystemExit: 0" in refused("model", "leaves:build")


def takes(nested):
    assert nested == {"_target_": "os.system", "command": "false"}
    return Own()


def test_targets_in_arguments_are_data():
    """The builder receives them as they are; dglpipe calls nothing that they name."""
    args = {"nested": {"_target_": "os.system", "command": "false"}}
    assert isinstance(BUILDERS["model"](f"{__name__}:takes", args), Own)
