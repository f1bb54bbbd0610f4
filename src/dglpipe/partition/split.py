"""Cuts a traced network into stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torch import fx, nn

from dglpipe.errors import ConfigError
from dglpipe.partition.segments import TracedNetwork, extract, tensors_by_key


def even_boundaries(segments: int, stages: int) -> list[int]:
    """First segment of every stage of an even cut: sizes differ by at most 1, larger first.

    Example: 10 segments in 4 stages have sizes 3, 3, 2, 2; the result is [0, 3, 6, 8].
    """
    size, larger = divmod(segments, stages)
    return [size * stage + min(stage, larger) for stage in range(stages)]


def boundaries(
    split: str | Sequence[int], segments: int, stages: int, names: Sequence[str] = ()
) -> list[int]:
    """First segment of every stage; 0 for the first stage.

    Args:
        split: `even`, or the first segment of every stage but the first.
        segments: number of segments.
        stages: K.
        names: names of the segments, for error messages.

    Raises:
        ConfigError: more stages than segments; a list of the wrong length, not increasing or out
            of range; a string other than `even`.
    """
    hint = f"Segments: {', '.join(f'{at} {name}' for at, name in enumerate(names))}" * bool(names)
    if not 1 <= stages <= segments:
        allowed = f"1 to {segments}, the number of segments of this network"
        raise ConfigError("pipeline.stages", stages, allowed, hint)
    if isinstance(split, str):
        if split != "even":
            raise ConfigError("pipeline.split", split, "even, or a list of segments")
        return even_boundaries(segments, stages)
    firsts = list(split)
    allowed = _required(firsts, segments, stages)
    if allowed:
        raise ConfigError("pipeline.split", firsts, allowed, hint)
    return [0, *firsts]


def check_stages(traced: TracedNetwork, stages: int) -> None:
    """Checks that there are at least as many segments as stages.

    Raises:
        ConfigError: more stages than segments; the hint names sizes that prevent further cuts.
    """
    try:
        boundaries("even", len(traced.segments), stages, [one.name for one in traced.segments])
    except ConfigError as error:
        operations = traced.operations
        places = (at for at, node in enumerate(operations.nodes) if at and operations.weights(node))
        found = dict.fromkeys(itertools.chain(*map(operations.blocking_lines, places)))
        if not found:
            raise
        hint = f"{error.hint}. Sizes that are read before a cut and used after it prevent more "
        hint += f"cuts: {'; '.join(found)}. Read a size where it is used"
        raise ConfigError(error.key, error.got, error.allowed, hint) from None


def _required(firsts: list[int], segments: int, stages: int) -> str:
    """Description of an allowed list; empty if `firsts` is allowed."""
    if len(firsts) != stages - 1:
        return f"{stages - 1} numbers for {stages} stages: the first segment of all but stage 0"
    if any(later <= earlier for earlier, later in itertools.pairwise(firsts)):
        return "increasing numbers: every stage has a segment"
    if any(not 1 <= first < segments for first in firsts):
        return f"numbers from 1 to {segments - 1}, the last segment of this network"
    return ""


def cut(traced: TracedNetwork, boundaries: Sequence[int]) -> list[fx.GraphModule]:
    """The stages. Run in sequence, they compute the same outputs as the network, bit for bit.

    Every stage holds modules, parameters and buffers of the network (shared, not copied) under
    their `state_dict` keys. Every key is in exactly one stage; tensors that no operation uses are
    in the last stage.

    Args:
        boundaries: first segment of every stage, as returned by `boundaries()`.

    Raises:
        ConfigError: two stages would own the same tensor (tied weights); a module that is not one
            operation has state other than parameters and buffers.
    """
    ends = [*boundaries[1:], len(traced.segments)]
    stages = [extract(traced, first, end) for first, end in zip(boundaries, ends, strict=True)]
    held = {key for stage in stages for key in stage.state_dict()}
    owners = {id(value): stage for stage in stages for value in tensors_by_key(stage).values()}
    for key, value in tensors_by_key(traced.network).items():
        if key not in held:  # a second name of a used tensor, or an unused tensor
            _adopt(owners.get(id(value), stages[-1]), traced.network, key)
    _refuse_ties(stages, boundaries)
    return stages


def _adopt(stage: nn.Module, network: nn.Module, key: str) -> None:
    """Registers parameter or buffer `key` of `network` in `stage`."""
    path, _, name = key.rpartition(".")
    source, owner = network.get_submodule(path), stage
    for part in filter(None, path.split(".")):
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if name in source._parameters:
        owner.register_parameter(name, source._parameters[name])
    elif name in source._buffers:
        owner.register_buffer(name, source._buffers[name])
    else:
        raise ConfigError("model", key, "state in parameters and buffers only")


def _refuse_ties(stages: Iterable[nn.Module], boundaries: Sequence[int]) -> None:
    owners: dict[int, tuple[int, str]] = {}
    for j, stage in enumerate(stages):
        for key, tensor in tensors_by_key(stage).items():
            other, name = owners.setdefault(id(tensor), (j, key))
            if other != j:
                what = f"{name} and {key}, which are the same tensor,"
                if name == key:
                    what = f"all uses of {key}"
                allowed = f"auto, or cuts that leave {what} in one stage"
                got = f"stages that begin at segments {list(boundaries)}"
                hint = f"Tied weights: stages {other} and {j} would each train their own copy"
                raise ConfigError("pipeline.split", got, allowed, hint)
