"""One training run on this machine, from a configuration to its summary."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dglpipe.config import Config, to_yaml
from dglpipe.errors import RunDirError, StorageError, UserError
from dglpipe.files import write_whole
from dglpipe.host import cores
from dglpipe.methods.run_plan import RunPlan
from dglpipe.runtime.launcher import launch
from dglpipe.runtime.own_runs import record_own
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.resume import check_same, read_config, with_cut_of_resumed_run
from dglpipe.runtime.run_dir import RunDir, default_path
from dglpipe.runtime.signals import INTERRUPTION


def train(config: Config) -> dict[str, Any]:
    """Checks `config`, starts its processes on this machine, and waits for them.

    With `resume=auto`, a run that has finished is not trained again; no file changes.

    Args:
        config: the configuration; not modified.

    Returns:
        The summary.

    Raises:
        UserError: an error in the user's input; nothing was trained.
        RunFailedError: a process failed.
    """
    layout = plan_layout(config.pipeline, config.method, cores())
    plan = make_plan(with_cut_of_resumed_run(config, layout), layout)
    run_dir = choose_run_dir(config)
    finished = find_finished(plan, run_dir)
    if finished is not None:
        return finished
    is_new = run_dir.status() is None
    INTERRUPTION.check()
    with run_dir.claim(config.resume):
        plan = settle(plan, run_dir)
        try:
            return launch(plan, run_dir)
        except UserError:
            if is_new:
                run_dir.discard()
            raise


def choose_run_dir(config: Config) -> RunDir:
    """The directory that `config` names, or a new directory."""
    return RunDir(Path(config.run_dir) if config.run_dir else default_path())


def settle(plan: RunPlan, run_dir: RunDir) -> RunPlan:
    """Writes the configuration to `run_dir`.

    Returns:
        The plan with the run directory in its configuration.

    Raises:
        RunDirError: the directory cannot be written to.
    """
    plan = in_run_dir(plan, run_dir)
    is_new = run_dir.status() is None
    text = to_yaml(plan.config)
    try:
        run_dir.forget_end()
        record_own(plan.config, text)
        write_whole(run_dir.config, text)
    except StorageError as error:
        if is_new:
            run_dir.discard()
        raise RunDirError(f"run_dir: {error}; {error.hint}") from error
    return plan


def find_finished(plan: RunPlan, run_dir: RunDir) -> dict[str, Any] | None:
    """The summary of a finished run in `run_dir`, after a message to the user; else None.

    Changes no file.

    Raises:
        UserError: `plan` may not use the directory, or differs from the run in it.
    """
    run_dir.check(plan.config.resume)
    status = run_dir.status()
    if status == "finished" or (status is not None and run_dir.config.is_file()):
        check_same(read_config(run_dir), in_run_dir(plan, run_dir).config)
    if status != "finished":
        return None
    summary: dict[str, Any] = json.loads(run_dir.summary.read_text())
    sys.stderr.write(f"dglpipe: {run_dir.path}: already finished; nothing was trained\n")
    return summary


def in_run_dir(plan: RunPlan, run_dir: RunDir) -> RunPlan:
    """`plan` with `run_dir` in its configuration."""
    return replace(plan, config=replace(plan.config, run_dir=os.fspath(run_dir.path)))
