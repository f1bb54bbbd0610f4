"""Memory of a run on this machine, compared with the memory that the machine has.

The estimate is a lower bound, so that no run that could finish is refused: tensors that a stage
needs for certain, without the libraries' own memory, temporary tensors and the activations inside
of segments and heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dglpipe.errors import ConfigError
from dglpipe.host import memory_bytes
from dglpipe.partition.cut_problem import CutProblem
from dglpipe.partition.memory import format_bytes, optimizer_state
from dglpipe.pipeline.link import LinkBuffers
from dglpipe.pipeline.topology import Layout, Topology

PROCESS_BYTES = 150 * 2**20
"""Lower bound of the memory of a process with its libraries, without what processes share."""
HINT = "Reduce the setting, or run on a machine with more memory"


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """The part of a run that one machine holds.

    Attributes:
        layout: stages, processes and replicas of the run.
        ranks: processes of this machine.
        rows: rows of a training batch on one replica.
        test_rows: rows of a test batch on one replica.
        data_bytes: images that every process of stage 0 keeps in memory.
        on_host: whether stages and links are in the memory of the machine; False: on GPUs.
    """

    layout: Layout
    ranks: range
    rows: int
    test_rows: int
    data_bytes: int
    on_host: bool = True


def require_processes(count: int, key: str, got: object) -> None:
    """Raises ConfigError if `count` processes need more memory than this machine has."""
    most = memory_bytes() // PROCESS_BYTES
    if count > most:
        allowed = f"at most {most} processes on a machine of {format_bytes(memory_bytes())}"
        raise ConfigError(key, got, allowed, f"The run has {count} processes")


def require_memory(problem: CutProblem, bounds: Sequence[int], load: MachineLoad) -> None:
    """Raises ConfigError if the run needs more memory than this machine has.

    The error names the setting that needs most.

    Args:
        bounds: first segment of every stage.
    """
    needs = _needs(problem, bounds, load)
    total, have = sum(needs.values()), memory_bytes()
    if total <= have:
        return
    key = max(needs, key=lambda name: needs[name])
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in needs.items() if size)
    allowed = f"settings that need at most {format_bytes(have)}, the memory of this machine"
    hint = f"This run needs {format_bytes(total)} or more ({parts}). {HINT}"
    raise ConfigError(key, _value(problem, key), allowed, hint)


def require_one_segment(problem: CutProblem) -> None:
    """Raises ConfigError if this machine cannot run every segment on two rows.

    `record_fields` does that for every run and plan.
    """
    shapes, have = problem.shapes, memory_bytes()
    for at, shape in enumerate(shapes):
        weights = 4 * _parameters(problem, at)
        maps = 2 * 4 * sum(math.prod(one) for one in (shape, *shapes[at + 1 : at + 2]))
        if weights + maps > have:
            key = _model_key(problem) if weights > maps else "data.image_size"
            allowed = f"networks whose segments need at most {format_bytes(have)} for two rows"
            name = problem.traced.segments[at].name
            hint = f"Segment {at} ({name}) needs {format_bytes(weights + maps)} or more. {HINT}"
            raise ConfigError(key, _value(problem, key), allowed, hint)


def _needs(problem: CutProblem, bounds: Sequence[int], load: MachineLoad) -> dict[str, int]:
    """Bytes on this machine by the setting that determines them."""
    needs = dict.fromkeys(
        (_model_key(problem), "batch_size", "evaluate.batch_size", _buffers_key(problem)), 0
    )
    needs[_data_key(problem)] = 0
    needs["pipeline.stages"] = PROCESS_BYTES * len(load.ranks)
    ends = [*bounds[1:], len(problem.traced.segments)]
    weights = [_stage_bytes(problem, j, bounds[j], ends[j]) for j in range(len(bounds))]
    rows = [sum(map(math.prod, problem.shapes[a:b])) for a, b in zip(bounds, ends, strict=True)]
    largest = max(map(math.prod, problem.shapes))
    for topology in map(load.layout.at, load.ranks):
        if topology.is_first:
            needs[_data_key(problem)] += load.data_bytes
        if not load.on_host:
            continue
        own = topology.stages
        needs[_model_key(problem)] += sum(weights[j] for j in own)
        # A stage has released its activations when the next stage of its process learns.
        share = max(
            rows[j] * problem.item_bytes(j) * problem.method.activation_share(j, len(bounds))
            for j in own
        )
        needs["batch_size"] += int(load.rows * share)
        needs["evaluate.batch_size"] += load.test_rows * largest * 2
        needs[_buffers_key(problem)] += load.rows * _link_bytes(problem, bounds, topology)
    return needs


def _stage_bytes(problem: CutProblem, j: int, first: int, end: int) -> int:
    """Bytes of weights, gradients and optimizer state of a stage with its auxiliary modules."""
    count = sum(_parameters(problem, at) for at in range(first, end))
    if end < len(problem.shapes):
        found = problem.auxiliary_at(j)(end)
        modules = found.modules if found else ()
        count += sum(one.numel() for module in modules for one in module.parameters())
    own = problem.config.stage(j)
    return 4 * count * (2 + optimizer_state(own.optimizer))


def _parameters(problem: CutProblem, at: int) -> int:
    return sum(one.numel() for one in problem.traced.piece(at).parameters())


def _link_bytes(problem: CutProblem, bounds: Sequence[int], topology: Topology) -> int:
    """Bytes per row of the buffers of a process: its links, and batches that its stages store."""
    total, depth = 0, problem.config.pipeline.depth
    for j in topology.stages:
        if j + 1 < len(bounds) and (j + 1 not in topology.stages):
            total += problem.method.buffers(j, depth).sender_bytes(_row(problem, bounds, j))
        if j:
            buffers = problem.method.buffers(j - 1, depth)
            if j - 1 in topology.stages:
                buffers = LinkBuffers(0, 0, buffers.stored, buffers.stored_item_bytes)
            row = _row(problem, bounds, j - 1)
            total += buffers.receiver_bytes(row, problem.item_bytes(j - 1))
    return total


def _row(problem: CutProblem, bounds: Sequence[int], j: int) -> int:
    """Bytes of a row of activations that stage `j` sends."""
    return math.prod(problem.shapes[bounds[j + 1]]) * problem.item_bytes(j)


def _model_key(problem: CutProblem) -> str:
    return "model.width" if hasattr(problem.config.model, "width") else "model"


def _data_key(problem: CutProblem) -> str:
    if hasattr(problem.config.data, "samples"):
        return "data.samples"
    return "data.image_size" if hasattr(problem.config.data, "image_size") else "data"


def _buffers_key(problem: CutProblem) -> str:
    if getattr(problem.config.method, "buffer", 0) > problem.config.pipeline.depth:
        return "method.buffer"
    return "pipeline.depth"


def _value(problem: CutProblem, key: str) -> object:
    """The value of the setting `key`; the name of the choice of a group."""
    found: object = problem.config
    for part in key.split("."):
        found = getattr(found, part)
    return getattr(found, "name", found)
