"""Checks that the local objectives of a run fit its method, before the run starts."""

from __future__ import annotations

from dataclasses import asdict, replace

from dglpipe.config import LOCALS, Config, LocalConfig
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Method
from dglpipe.methods.local.base import LocalObjective
from dglpipe.models.heads import HEAD
from dglpipe.partition.staged_network import StagedNetwork


def check_objectives(config: Config, method: Method) -> None:
    """Checks the settings of `local` of every stage.

    Raises:
        ConfigError: a setting that the method or the last stage would ignore, or an objective that
            does not fit the data set.
    """
    for one in method.local:
        if not method.learns_locally:
            _require(one, LocalConfig(), method, "The stages have no local loss")
        elif method.objective is not None:
            settings = one.settings
            kept = replace(
                LocalConfig(),
                label_smoothing=settings.label_smoothing,
                head_warmup=settings.head_warmup,
            )
            _require(one, kept, method, "This method has a local objective of its own")
        if one.copies_following and not method.carries_weights:
            others = ", ".join(name for name in LOCALS if name != one.settings.name)
            hint = "It carries no weights down"
            raise ConfigError(
                "local", one.settings.name, f"{others} with method={method.name}", hint
            )
        _check_last(config, one)
        one.check()


def check_steps(method: Method, steps: int) -> None:
    """Checks settings of `local` that count steps.

    Args:
        steps: steps of each stage in the run.

    Raises:
        ConfigError: a warm-up or a lag that is not shorter than the run.
    """
    for one in method.local:
        warmup, lag = one.settings.head_warmup, one.lag or 0
        if warmup >= steps:
            hint = "The networks of the stages would not learn"
            raise ConfigError("local.head_warmup", warmup, f"0 to {steps - 1}", hint)
        if lag >= steps:
            allowed = f"0 to {steps - 1}, less than the steps of the run"
            raise ConfigError("local.lag", lag, allowed)


def _require(one: LocalObjective, wanted: LocalConfig, method: Method, hint: str) -> None:
    for name, value in asdict(wanted).items():
        got = getattr(one.settings, name)
        if got != value:
            told = "null" if value is None else value
            raise ConfigError(f"local.{name}", got, f"{told} with method={method.name}", hint)


def _check_last(config: Config, one: LocalObjective) -> None:
    """Refuses an objective that `per_stage` gives to the last stage alone, and that changes
    nothing there."""
    own = config.per_stage[one.stage] if config.per_stage else {}
    is_idle = one.is_last and not one.acts_in_last_stage
    if is_idle and "local" in own and one.settings.name not in ("task", config.local.name):
        key, hint = f"per_stage[{one.stage}].local", "The last stage has no head"
        raise ConfigError(key, one.settings.name, "task or trgl", hint)


def check_cut_objectives(method: Method, network: StagedNetwork) -> None:
    """Checks that every objective fits its stage, and has its modules.

    Raises:
        ConfigError: it does not, or `Method.auxiliary` of a method leaves modules out.
    """
    for one in method.local:
        one.check_cut(network.spec)
        if one.is_last or not method.learns_locally or method.objective is not None:
            continue
        boundary = network.spec.boundary(one.stage, network.config.stage(one.stage).head)
        missing = one.auxiliary(boundary).keys() - method.auxiliary(boundary).keys() - {HEAD}
        if missing:
            got = f"{one.settings.name}, which needs {min(missing)!r} in stage {one.stage}"
            hint = "Method.auxiliary has to return the modules of super().auxiliary(boundary), too"
            raise ConfigError("local.name", got, f"task with method={method.name}", hint)
