"""Compares the declarations of a method with its messages and losses, before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dglpipe.config import PluginConfig
from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Method
from dglpipe.methods.emission import Emission
from dglpipe.methods.run_plan import RunPlan
from dglpipe.models.losses import check_plug_in
from dglpipe.partition.own_stages import build_own_stages
from dglpipe.partition.profiling import cpu_threads
from dglpipe.pipeline.message import ACTIVATIONS, Direction, Field
from dglpipe.pipeline.stage_module import LocalStep, StageModule, cast_input

ROWS = 2
"""Rows of the test batch. Batch norm needs at least two."""


def check_messages(method: Method, plan: RunPlan) -> None:
    """Runs forward and objective of every stage on two rows, and compares messages.

    A method that uses the messages and the loss of the package is not run. A loss from outside the
    package is called on logits of the size of a batch.

    Raises:
        ConfigError: a loss does not return a scalar with a gradient; a declared tensor is not
            filled, a filled tensor is not declared, or a dtype or shape differs from the
            declaration. The message names method, stage and tensor.
    """
    for link in range(len(plan.messages)):
        _check_declared(method, plan, link)
    loss = method.settings.loss
    if isinstance(loss, PluginConfig):
        built = method.learning(0, plan.config.label_smoothing).loss
        check_plug_in(
            built, loss.target, plan.schedule.largest_rows(Phase.TRAIN), plan.spec.classes
        )
    kind = type(method)
    changes_loss = kind.learning is not Method.learning or method.objective is not None
    fills = kind.outgoing is not Method.outgoing or any(map(plan.extras, range(len(plan.messages))))
    if method.flows_back or not (changes_loss or fills):
        return
    modules = build_own_stages(plan.config, method, plan.data, plan.spec, range(plan.layout.stages))
    inputs = torch.rand(ROWS, *plan.spec.image_shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(memory_format=torch.channels_last)
    labels = torch.arange(ROWS) % plan.spec.classes
    extras: Mapping[str, Tensor] = {}
    # One thread: a process that is forked later must not inherit a pool of threads.
    with torch.random.fork_rng(devices=[]), cpu_threads(1):
        for j, module in modules.items():
            inputs, extras = _check_stage(method, plan, j, module, inputs, labels, extras)


def _check_declared(method: Method, plan: RunPlan, link: int) -> None:
    """Raises ConfigError for a message down without a delay, or a name that no link carries."""
    fields = plan.messages[link]
    for field in fields:
        if field.direction is Direction.DOWN and method.delay(link, plan.layout.stages) is None:
            got = f"{_place(method, link, field.name)}: direction {field.direction.value}"
            hint = "Method.delay says when a stage uses the message"
            raise ConfigError("method", got, "up, without a delay", hint)
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            got = f"{_place(method, link, name)}: declared {names.count(name)} times"
            raise ConfigError("method", got, "each name once")
    if plan.spec.fields and ACTIVATIONS not in names:
        got = f"{_place(method, link, ACTIVATIONS)}: not declared"
        raise ConfigError("method", got, "messages with the tensors of Method.messages")


def _check_stage(
    method: Method,
    plan: RunPlan,
    j: int,
    module: StageModule,
    inputs: Tensor,
    labels: Tensor,
    extras: Mapping[str, Tensor],
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Checks stage `j`; returns the inputs and the extra tensors of the next stage."""
    emitted: list[Tensor] = []
    learning = method.learning(j, plan.config.label_smoothing)
    step = LocalStep(module, learning.loss, learning.objective, j, plan.spec.classes)
    cast = cast_input(inputs.float(), plan.config.stage(j).precision.name)
    try:
        step(cast, labels, extras, emitted.append)
    except ConfigError:
        raise
    except Exception as error:  # code of the user may raise any exception
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        got = f"{method.name}, stage {j}: the local objective fails"
        raise ConfigError("method", got, "an objective that works on every stage", reason) from (
            error
        )
    if j >= len(plan.messages):
        return inputs, extras
    features = plan.spec.fields[j].normalise(emitted[0])
    names = tuple(field.name for field in plan.extras(j))
    filled = method.outgoing(Emission(j, inputs, features, labels, extras, names))
    declared = {field.name: field for field in plan.extras(j)}
    _check_filled(method, j, declared, filled)
    return features, {name: field.normalise(filled[name]) for name, field in declared.items()}


def _check_filled(
    method: Method, j: int, declared: Mapping[str, Field], filled: Mapping[str, Tensor]
) -> None:
    """Compares the tensors that stage `j` fills with the declared tensors."""
    for name in filled.keys() - declared.keys():
        got = f"{_place(method, j, name)}: filled, but not declared"
        hint = "Declare it in Method.messages, or leave it out of Method.outgoing"
        raise ConfigError("method", got, "declared tensors only", hint)
    for name, field in declared.items():
        if Phase.TEST in field.phases:
            got = f"{_place(method, j, name)}: declared for evaluations"
            raise ConfigError("method", got, "phases=[Phase.TRAIN]: evaluations have no extras")
        if name not in filled:
            got = f"{_place(method, j, name)}: declared, but never filled"
            hint = "Fill it in Method.outgoing, or do not declare it"
            raise ConfigError("method", got, "every declared tensor filled", hint)
        tensor = filled[name]
        is_tensor = isinstance(tensor, Tensor)
        kind = (
            f"{tensor.dtype} of shape {tuple(tensor.shape)}" if is_tensor else type(tensor).__name__
        )
        declared_kind = f"{field.dtype} of shape {(ROWS, *field.shape)}"
        if kind != declared_kind:
            allowed = f"{declared_kind} for {ROWS} rows, as declared"
            raise ConfigError("method", f"{_place(method, j, name)}: {kind}", allowed)


def _place(method: Method, stage: int, tensor: str) -> str:
    return f"{method.name}, stage {stage}, tensor {tensor!r}"
