"""Builders from outside the package, and their errors."""

from __future__ import annotations

import textwrap

import pytest
import torch

from dglpipe.config import PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in, load_target
from dglpipe.errors import ConfigError

ANY = Kind("thing", object)
MODULE = """
    class Builder:
        @staticmethod
        def make(channels, depth=1):
            return channels, depth

    class Mapping(dict):
        pass

    def build(channels, *, classes, extra=None):
        return channels, classes, extra

    def swallow(**anything):
        return anything

    def fail():
        raise RuntimeError("from inside")

    number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on the path; `write(name, text)` puts a module into it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    write("plugged", MODULE)
    return write


def error(target, key="model.target"):
    with pytest.raises(ConfigError) as caught:
        load_target(target, key, ANY)
    assert caught.value.key == key
    return caught.value


@pytest.mark.parametrize("target", ["plugged:build", "plugged.build"])
def test_both_ways_to_write_a_target(folder, target):
    assert load_target(target, "model.target", ANY)(1, classes=2) == (1, 2, None)


def test_importing_draws_no_random_numbers_and_makes_no_tensors_on_paper(folder):
    folder("drawing", "import torch\nnoise = torch.rand(3)\ndef build(): return noise")
    torch.manual_seed(0)
    with torch.device("meta"):
        assert load_target("drawing:build", "model.target", ANY)().device.type == "cpu"
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_names_after_the_colon_may_have_dots(folder):
    assert load_target("plugged:Builder.make", "model.target", ANY)(5) == (5, 1)


@pytest.mark.parametrize("target", ["", "plugged", "plugged:", ":build", "a b.c", "plugged:a:b"])
def test_a_target_that_is_not_a_path_is_refused(folder, target):
    assert f"model.target: got {target!r}; allowed: package.module:builder" in str(error(target))


def test_a_module_that_is_not_there(folder):
    text = str(error("nowhere.to.be:found"))
    assert "There is no module 'nowhere'" in text
    assert "PYTHONPATH" in text


def test_a_submodule_that_is_not_there(folder):
    assert "There is no module 'plugged.sub'" in str(error("plugged.sub:found"))


def test_a_missing_import_inside_the_module_is_named(folder):
    folder("needy", "import not_installed_anywhere.part\ndef build(): ...")
    caught = error("needy:build", "head.target")
    assert "Module 'needy' exists, but its import fails" in str(caught)
    assert "module 'not_installed_anywhere' is not installed" in str(caught)
    assert "There is no module" not in str(caught)
    assert isinstance(caught.__cause__, ModuleNotFoundError)


def test_any_other_failure_of_the_module_is_named(folder):
    folder("broken", "from plugged import nothing_of_that_name")
    assert "its import fails: ImportError: cannot import name" in str(error("broken:build"))
    folder("crash", "1 / 0")
    assert "ZeroDivisionError: division by zero" in str(error("crash:build"))


def test_a_name_that_is_not_there(folder):
    text = str(error("plugged:biuld"))
    assert "'plugged' has no 'biuld'; similar names: build" in text
    assert "'plugged' has no 'xyz'" in str(error("plugged.xyz"))


def test_a_target_that_is_not_callable(folder):
    text = str(error("plugged:number"))
    assert "a class or function that gives a thing. plugged:number is of type int" in text


def test_offered_arguments_are_passed_if_the_signature_names_them(folder):
    config = PluginConfig(target="plugged:build")
    assert build_plug_in(config, "model", ANY, channels=1, classes=2, side=3) == (1, 2, None)


def test_arguments_of_the_user_take_precedence(folder):
    config = PluginConfig(target="plugged:build", args={"classes": 7, "extra": "x"})
    assert build_plug_in(config, "model", ANY, channels=1, classes=2) == (1, 7, "x")


def test_a_builder_of_anything_gets_only_what_the_user_gave(folder):
    config = PluginConfig(target="plugged:swallow", args={"depth": 2})
    assert build_plug_in(config, "model", ANY, channels=1) == {"depth": 2}


def test_a_builder_without_a_signature_gets_only_what_the_user_gave(folder):
    config = PluginConfig(target="plugged:Mapping", args={"depth": 2})
    assert build_plug_in(config, "model", ANY, channels=1) == {"depth": 2}


def test_arguments_that_do_not_fit_are_refused(folder):
    config = PluginConfig(target="plugged:build", args={"dept": 2})
    with pytest.raises(ConfigError) as caught:
        build_plug_in(config, "model", ANY, channels=1, classes=2)
    text = str(caught.value)
    assert text.startswith("model.args: got {'dept': 2}; allowed: arguments of plugged:build(")
    assert "unexpected keyword argument 'dept'" in text


def test_errors_of_the_builder_name_the_key_and_the_line(folder):
    message = r"^model\.args: got \{\}; .*RuntimeError: from inside \(.*plugged\.py, line \d+\)"
    with pytest.raises(ConfigError, match=message) as caught:
        build_plug_in(PluginConfig(target="plugged:fail"), "model", ANY)
    assert isinstance(caught.value.__cause__, RuntimeError)
