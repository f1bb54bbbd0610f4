"""Nothing that a run directory names is imported unless the reader allows it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import py_compile
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import dglpipe
from dglpipe.cli.main import run
from dglpipe.config import from_yaml, to_tree
from dglpipe.errors import RunDirError, UserError
from dglpipe.runtime.own_runs import record_own, record_path
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.trust_words import parse_trust
from harness.commands import DGLPIPE, Command
from harness.configs import in_test_all, make_config, small

PLUG_INS = """
from pathlib import Path
Path({marker!r}).touch()
import torch
from torch import nn
from dglpipe.methods import Dgl

def network(channels, classes):
    layers = [nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, classes))

def head(channels, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

class Head(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.last = nn.Linear(channels, classes)

    def forward(self, x):
        return self.last(x.mean(dim=(2, 3)))

class data:
    classes = 3

    def __init__(self):
        self.train = self.test = torch.rand(12, 1, 8, 8), torch.arange(12) % 3

def loss():
    return nn.CrossEntropyLoss()

class Method(Dgl):
    pass
"""
FIELDS = {
    "model.target": {"model": {"family": "custom", "target": "TARGET", "args": {}}},
    "model.target, as Hydra writes it": {"model": {"_target_": "TARGET", "width": 3}},
    "head.target": {"head": {"name": "custom", "target": "TARGET"}},
    "head.target, as Hydra writes it": {"head": {"_target_": "TARGET"}},
    "per_stage[0].head.target": {
        "per_stage": [{"head": {"name": "custom", "target": "TARGET"}}, {}]
    },
    "per_stage[1].head.target": {"per_stage": [{}, {"head": {"_target_": "TARGET", "a": 1}}]},
    "data.target": {"data": {"name": "custom", "target": "TARGET", "args": {"command": "false"}}},
    "data.target, as Hydra writes it": {"data": {"_target_": "TARGET"}},
    "method.target": {"method": {"name": "custom", "target": "TARGET", "args": {"a": 1}}},
    "method.loss.target": {"method": {"name": "dgl", "loss": {"target": "TARGET"}}},
    "method.loss.target, as Hydra writes it": {
        "method": {"name": "dgl", "loss": {"_target_": "TARGET"}}
    },
    "method.loss.target, of a custom method": {
        "method": {"name": "custom", "target": "dglpipe.methods:Dgl", "loss": {"target": "TARGET"}}
    },
}
"""Key in the message -> what a stranger writes into `config.yaml`."""


def load(path: Path, *trust: str) -> None:
    dglpipe.load(path, trust=trust)


def evaluate(path: Path, *trust: str) -> None:
    _command("evaluate", f"run={path}", *_word(trust))


def export(path: Path, *trust: str) -> None:
    _command("export", f"run={path}", f"output={Path('a.safetensors').resolve()}", *_word(trust))


def _word(trust: tuple[str, ...]) -> list[str]:
    return [f"trust={','.join(trust)}"] if trust else []


def _command(*words: str) -> None:
    """Runs a command in this process; raises its error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = run(words)
    if status:
        assert status == 2
        raise RunDirError(errors.getvalue().removeprefix("dglpipe: "))


READERS = [load, evaluate, export]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, and the import state of this process, for one test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("evil", "own_parts"):
            del sys.modules[name]


def write_run(path: Path, field: str, target: str) -> Path:
    """What a stranger sends: a run directory with `target` in one field of the configuration."""
    text = json.dumps({**to_tree(make_config()), **FIELDS[field]}).replace("TARGET", target)
    path.mkdir()
    RunDir(path).config.write_text(text)
    RunDir(path).summary.write_text('{"status": "finished"}')
    return path


def write_module(path: Path) -> Path:
    """A module, in packages without content. Its import leaves a marker beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    marker = path.with_suffix(".imported")
    path.write_text(PLUG_INS.format(marker=str(marker)))
    return marker


def cases() -> list[Any]:
    """Every field for `load`, and one field for each command; all others in `make test-all`."""
    pairs = [(field, reader) for field in FIELDS for reader in READERS]
    first = next(iter(FIELDS))
    return [pair if pair[1] is load or pair[0] == first else in_test_all(*pair) for pair in pairs]


@pytest.mark.parametrize(("field", "reader"), cases())
class TestEveryField:
    def test_in_the_working_directory(self, here, field, reader):
        marker = write_module(here / "evil.py")
        path = write_run(here / "run", field, "evil:network")
        with pytest.raises(RunDirError) as caught:
            reader(path)
        text, key = str(caught.value), field.partition(",")[0]
        assert text.startswith(f"run: {path / 'config.yaml'}: {key}: got 'evil:network'; allowed: ")
        assert str(here / "evil.py") in text
        assert "give trust=evil" in text
        assert not marker.exists()
        assert "evil" not in sys.modules

    def test_of_the_standard_library(self, here, field, reader, monkeypatch):
        monkeypatch.setattr("os.system", lambda *_: pytest.fail("called"))
        path = write_run(here / "run", field, "os.system")
        with pytest.raises(RunDirError, match=r"target: got 'os\.system'; .*standard library"):
            reader(path, "os")


INIT = r"execute .*evil/__init__\.py.* give trust=evil"


@pytest.mark.parametrize("reader", READERS)
def test_packages_that_contain_the_module_are_not_imported(here, reader):
    markers = [write_module(here / "evil" / name) for name in ("__init__.py", "deep.py")]
    path = write_run(here / "run", "model.target", "evil.deep:network")
    with pytest.raises(RunDirError, match=INIT):
        reader(path)
    with pytest.raises(RunDirError, match=INIT):
        reader(path, str(here / "evil" / "deep.py"))
    assert not any(marker.exists() for marker in markers)


def test_python_finds_the_module_in_a_folder_of_its_path(here, monkeypatch):
    marker = write_module(here / "lib" / "evil.py")
    monkeypatch.syspath_prepend(here / "lib")
    with pytest.raises(RunDirError, match=r"execute .*lib/evil\.py"):
        load(write_run(here / "run", "model.target", "evil:network"))
    assert not marker.exists()


def test_a_name_allows_no_file_of_the_run_directory(here, monkeypatch):
    path = write_run(here / "run", "model.target", "evil:network")
    marker = write_module(path / "evil.py")
    monkeypatch.chdir(path)
    with pytest.raises(RunDirError, match=rf"give trust={path / 'evil.py'}"):
        load(path, "evil")
    assert not marker.exists()
    RunDir(path).finished_config([path / "evil.py"])


@pytest.mark.parametrize(
    ("field", "target"),
    [
        ("model.target", "torch.fx.graph_module.reduce_graph_module"),
        ("model.target", "torch:load"),
        ("data.target", "torch.nn:Identity"),
        ("data.target", "dglpipe.methods:Dgl"),
        ("method.target", "torch.nn:Identity"),
        ("method.loss.target", "dglpipe.methods.registry:build_method"),
        ("model.target", "hydra.utils.instantiate"),
        ("model.target", "numpy.load"),
        ("model.target", "timm.create_model"),
        ("model.target", "__main__:network"),
        ("model.target", "blocked:network"),
    ],
)
def test_libraries_are_allowed_for_builders_of_the_kind_only(here, field, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    with pytest.raises(RunDirError, match="trust="):
        load(write_run(here / "run", field, target))


@pytest.mark.parametrize(
    ("field", "target"),
    [
        ("model.target", "torchvision.models.resnet18"),
        ("head.target", "torch.nn:Identity"),
        ("method.target", "dglpipe.methods:Dgl"),
        ("method.loss.target", "torch.nn.CrossEntropyLoss"),
    ],
)
def test_what_dglpipe_and_torch_provide_is_allowed(here, field, target):
    RunDir(write_run(here / "run", field, target)).finished_config()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evaluate"], ["export", "output=a.safetensors"]])
def test_nothing_beside_the_run_shadows_a_library(here, start, command):
    """Not even for `python -m dglpipe`, which puts the working directory first in `sys.path`."""
    path = write_run(here / "command_0", "model.target", "evil:network")
    markers = [write_module(path / f"{name}.py") for name in ("torch", "yaml", "opt_einsum")]
    run = start(*DGLPIPE, *command, "run=.")
    assert run.wait() == 2
    assert "there is no module 'evil'" in run.stderr
    assert not any(marker.exists() for marker in markers)


@pytest.mark.parametrize(
    ("program", "first", "left"),
    [
        ("dglpipe.__main__", "HERE", ["lib"]),
        ("dglpipe.__main__", "elsewhere", ["elsewhere", "lib"]),
        ("another_program", "HERE", ["HERE", "lib"]),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_reader_leaves_the_working_directory(here, monkeypatch, command, program, first, left):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(program, None))
    monkeypatch.setattr(sys, "path", [first.replace("HERE", str(here)), "lib"])
    monkeypatch.setattr("dglpipe.cli.main._run_command", lambda *_: 0)
    run([command])
    assert sys.path == [one.replace("HERE", str(here)) for one in left]


def test_the_name_of_a_part_allows_no_builder_of_the_package(here):
    marker = write_module(here / "evil" / "__init__.py")
    write_module(here / "evil" / "part.py")
    with pytest.raises(RunDirError, match="give trust=evil"):
        load(write_run(here / "run", "model.target", "evil:network"), "evil.part")
    assert not marker.exists()
    RunDir(write_run(here / "other", "model.target", "evil.part:network")).finished_config(
        ["evil.part"]
    )
    assert marker.exists()


def test_yaml_builds_no_objects(here):
    path = write_run(here / "run", "model.target", "os.system")
    RunDir(path).config.write_text(f"!!python/object/apply:os.mkdir [{here / 'made'}]\n")
    with pytest.raises(RunDirError, match=r"config\.yaml cannot be read"):
        load(path)
    assert not (here / "made").exists()


def test_resuming_compares_the_old_configuration_and_imports_nothing(here, capsys):
    marker = write_module(here / "evil.py")
    path = write_run(here / "run", "model.target", "evil:network")
    RunDir(path).summary.unlink()
    words = [*small("pipeline.split=auto", "pipeline.stages=2"), f"run_dir={path}", "resume=auto"]
    assert run(["train", *words]) == 2
    assert "A resumed run keeps the settings" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("words", ["a/b.py", "gone.py", "a b", [""], "a,,b", "-x", ".", ["[a]"]])
def test_words_that_are_no_names_are_refused(here, words):
    with pytest.raises(UserError, match=r"^trust: got .*; allowed: names of distributions"):
        parse_trust(words)


@pytest.mark.parametrize("words", [5, None, ["a", 5]])
def test_words_that_are_no_texts_are_refused(words):
    with pytest.raises(UserError, match=r"^trust: got .*; allowed: a sequence of names and files"):
        parse_trust(words)


def test_ways_to_write_trust(here):
    (here / "a,b.py").touch()
    for words in ("x.y,z", "[x.y, z]", "['x.y','z']", ["x.y", "z"], ("x.y", "z")):
        assert parse_trust(words).names == {"x.y", "z"}
    for words in (here / "a,b.py", "a,b.py", [here / "a,b.py"], str(here / "a,b.py")):
        assert parse_trust(words).files == {(here / "a,b.py").resolve()}
    assert parse_trust("") == parse_trust([]) == parse_trust("[]") == parse_trust(())


@pytest.mark.parametrize(
    ("command", "more"), [("evaluate", []), ("export", ["output=a.safetensors"])]
)
def test_trust_is_a_word_of_the_commands(here, command, more, capsys):
    path = write_run(here / "run", "model.target", "evil:network")
    assert run([command, f"run={path}", *more, "trust=a b"]) == 2
    assert "trust: got 'a b'; allowed: names of" in capsys.readouterr().err
    assert run([command, f"run={path}", *more, "trust=evil", "trust=other"]) == 2
    assert "allowed: run=RUN_DIR" in capsys.readouterr().err


OWN = (
    *("model=custom", "model.target=own_parts.nets:network", "head=custom"),
    *("head.target=own_parts.nets:Head", "data=custom", "data.target=own_parts.nets:data"),
    *("method=custom", "method.target=own_parts.nets:Method"),
    *("method.loss={target:own_parts.nets.loss}", "batch_size=6", "epochs=1"),
)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A folder in which the user has trained a run with plug-ins of a package of his own."""
    folder = tmp_path_factory.mktemp("own")
    write_module(folder / "own_parts" / "nets.py")
    words = ("train", *OWN, "pipeline.stages=2", "pipeline.processes=1", "run_dir=run")
    run = Command(words, folder)
    assert run.wait() == 0, run.stderr
    return folder


@pytest.fixture
def foreign(here, own_run, monkeypatch):
    """The same run, copied to the working directory, for a user who has not trained it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    shutil.copytree(own_run / "run", here / "run")
    shutil.copytree(own_run / "own_parts", here / "own_parts")
    (here / "own_parts" / "nets.imported").unlink()
    write_module(here / "own_parts" / "nets.py")
    return here


@pytest.mark.parametrize("reader", READERS)
def test_an_own_run_needs_no_trust(here, own_run, reader, monkeypatch):
    monkeypatch.chdir(own_run)
    reader(own_run / "run")
    # The record belongs to the content of config.yaml: a copy elsewhere is the same run.
    shutil.copytree(own_run / "run", here / "copy")
    reader(here / "copy")


def test_another_file_than_in_training_needs_trust(here, own_run, foreign, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(foreign)
    with pytest.raises(RunDirError, match=rf"execute {foreign / 'own_parts' / 'nets.py'}"):
        load(own_run / "run")


def test_a_changed_configuration_needs_trust(here, own_run, monkeypatch):
    monkeypatch.chdir(own_run)
    shutil.copytree(own_run / "run", here / "changed")
    config = RunDir(here / "changed").config
    config.write_text(config.read_text().replace("nets:Head", "nets:head"))
    with pytest.raises(RunDirError, match=r"model\.target: got 'own_parts\.nets:network'"):
        load(here / "changed")


def test_a_record_that_others_can_change_does_not_count(own_run, here, monkeypatch):
    monkeypatch.chdir(own_run)
    record = record_path()
    assert record.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XDG_STATE_HOME", str(here))
    record_path().parent.mkdir()
    shutil.copy(record, record_path())
    with record_path().open("a") as file:
        file.write('{"config": "cut o')
    RunDir(own_run / "run").finished_config()
    record_path().chmod(0o666)
    with pytest.raises(RunDirError, match="trust=own_parts"):
        RunDir(own_run / "run").finished_config()


@pytest.mark.parametrize("reader", [load, in_test_all(evaluate), in_test_all(export)])
@pytest.mark.parametrize(
    "words", [["own_parts"], ["own_parts.nets"], ["other", "own_parts/nets.py"], ["Own-Parts"]]
)
def test_what_the_reader_trusts_is_imported(foreign, reader, words):
    metadata = foreign / "own_parts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: Own-Parts\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("own_parts/nets.py,,\n")
    if words == ["Own-Parts"]:
        sys.path.append(str(foreign))
    marker = foreign / "own_parts" / "nets.imported"
    with pytest.raises(RunDirError, match="give trust=own_parts"):
        reader(foreign / "run", "own_part", "parts", "own_parts.ne", "nets")
    assert not marker.exists()
    reader(foreign / "run", *words)
    assert marker.exists()


def test_a_record_that_cannot_be_written_is_told(here, monkeypatch, capsys):
    (here / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file"))
    path = write_run(here / "run", "model.target", "evil:network")
    config = from_yaml(RunDir(path).config.read_text())
    record_own(config, "text")
    assert "the run is not recorded as yours" in capsys.readouterr().err
    with pytest.raises(RunDirError, match="trust=evil"):
        RunDir(path).finished_config()


def test_the_file_is_executed_that_the_reader_has_read(here):
    """Not a compiled copy that lies beside it."""
    marker, file = write_module(here / "evil.py"), here / "evil.py"
    old = file.stat()
    compiled = Path(py_compile.compile(str(file)))
    file.write_bytes(b"network = int\n".ljust(old.st_size, b"#"))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    RunDir(write_run(here / "run", "model.target", "evil:network")).finished_config(file)
    assert sys.modules["evil"].network is int
    assert not marker.exists()
    before = compiled.read_bytes()
    del sys.modules["evil"]
    __import__("evil")  # as Python does by itself
    assert marker.exists()
    assert compiled.read_bytes() == before


def test_runs_without_plug_ins_are_not_recorded(here, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(here))
    record_own(copy.deepcopy(make_config()), "text")
    assert list(here.iterdir()) == []
