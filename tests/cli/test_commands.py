"""The commands that do not train."""

from __future__ import annotations

import pytest

import dglpipe
from dglpipe.cli.config_groups import config_text
from dglpipe.cli.main import run


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(capsys, flag):
    assert run([flag]) == 0
    assert capsys.readouterr().out.startswith("usage: dglpipe COMMAND")


def test_no_command_prints_the_usage(capsys):
    assert run([]) == 2
    assert capsys.readouterr().err.startswith("usage: dglpipe COMMAND")


def test_unknown_command(capsys):
    assert run(["trian"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("dglpipe: no command 'trian'; did you mean train?")
    assert "usage: dglpipe COMMAND" in err


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"dglpipe {dglpipe.__version__}\n"


def test_models_lists_every_choice(capsys):
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    for name in ("cnn6", "vgg19_bn", "resnet152", "mlp_sr", "image_folder", "adamw", "cosine"):
        assert name in out


def test_config_is_printed_without_training(capsys):
    assert run(["train", "--cfg", "job", "model.width=7"]) == 0
    out = capsys.readouterr().out
    assert "width: 7" in out
    assert "batch_size: 128" in out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_train_lists_groups_and_settings(capsys, flag):
    assert run(["train", flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: dglpipe train [OVERRIDES] [FLAGS]"
    assert any(line.startswith("  model: cnn4, cnn6, ") for line in lines)
    assert "  model: # model=cnn6" in lines
    for line in config_text("model/cnn6.yaml").splitlines():
        assert f"    {line}" in lines
    assert any(line.startswith("  batch_size: 128") for line in lines)
    assert not [line for line in lines if "defaults:" in line and "settings" not in line]


def test_help_of_train_shows_the_chosen_groups(capsys):
    assert run(["train", "--help", "optimizer=adam", "schedule=none_such"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  optimizer: # optimizer=adam" in lines
    assert "    betas: [0.9, 0.999]" in lines
    assert "  schedule: # schedule=cosine" in lines
