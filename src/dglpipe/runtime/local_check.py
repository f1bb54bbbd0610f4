"""Checks that the local objectives of a run fit its method, before the run starts."""

from __future__ import annotations

from collections.abc import Set
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
            own, hint = one.settings.name, "It carries no weights down"
            others = ", ".join(name for name in LOCALS if name != own)
            key, allowed = _key(config, one), f"{others} with method={method.name}"
            raise ConfigError(key, own, allowed, hint)
        _check_last(config, one)
        one.check()


def check_steps(config: Config, method: Method, steps: int) -> None:
    """Checks settings of `local` that count steps.

    Args:
        steps: steps of each stage in the run.

    Raises:
        ConfigError: a warm-up that is not shorter than the run, or weights that would never be
            used.
    """
    for one in method.local:
        key, warmup = _key(config, one), one.settings.head_warmup
        if warmup >= steps:
            hint = "The networks of the stages would not learn"
            raise ConfigError(f"{key}.head_warmup", warmup, f"0 to {steps - 1}", hint)
        if one.first_use > steps:
            lag = one.lag or 0
            every, hint = one.first_use - lag, "Weights would come down after the last step"
            if every > steps:
                raise ConfigError(f"{key}.every", every, f"1 to {steps}", hint)
            raise ConfigError(f"{key}.lag", lag, f"0 to {steps - every}", hint)


def _key(config: Config, one: LocalObjective) -> str:
    """The key that sets the objective."""
    own = config.per_stage[one.stage] if config.per_stage else {}
    return f"per_stage[{one.stage}].local" if "local" in own else "local"


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
    """Checks that every objective fits its stage, and has its modules and tensors.

    Raises:
        ConfigError: it does not, or a method leaves modules or tensors out.
    """
    spec = network.spec
    for one in method.local:
        one.check_cut(spec)
        if one.is_last or not method.learns_locally or method.objective is not None:
            continue
        boundary = spec.boundary(one.stage, network.config.stage(one.stage).head)
        missing = one.auxiliary(boundary).keys() - method.auxiliary(boundary).keys() - {HEAD}
        _require_all(method, one, missing, "Method.auxiliary", "modules")
        one.check_modules(network.auxiliary(one.stage))
        needed = {(one.stage, field.name) for field in one.fields_down(spec)}
        if one.stage:
            needed |= {(one.stage - 1, field.name) for field in one.fields(spec)}
        declared = {
            (link, field.name)
            for link in {link for link, _ in needed}
            for field in method.messages(link, spec)
        }
        absent = {name for _, name in needed - declared}
        _require_all(method, one, absent, "Method.messages", "tensors")


def _require_all(
    method: Method, one: LocalObjective, missing: Set[str], function: str, what: str
) -> None:
    if missing:
        got = f"{one.settings.name}, which needs {min(missing)!r} in stage {one.stage}"
        hint = f"{function} has to return the {what} of super(), too"
        raise ConfigError("local.name", got, f"task with method={method.name}", hint)
