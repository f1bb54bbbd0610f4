"""The first segment above a cut, for heads that copy it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from dglpipe.models.features import Features, SegmentForm
from dglpipe.partition.channels import channels_at
from dglpipe.partition.segments import TracedNetwork, extract_last_map
from dglpipe.partition.shape_prop import output_row
from dglpipe.partition.stage_method import StageMethod


def following_segment(traced: TracedNetwork, at: int) -> nn.Module | None:
    """Segment `at` without the classifier, which shares its weights with the network; None if it
    is nothing but the classifier."""
    is_last = at == len(traced.segments) - 1
    return extract_last_map(traced) if is_last else traced.piece(at)


def following_form(traced: TracedNetwork, at: int, row: tuple[int, ...]) -> SegmentForm | None:
    """The form of this segment. Runs it in the mode that its modules have.

    Args:
        row: shape of one input row.
    """
    segment = following_segment(traced, at)
    if segment is None:
        return None
    output = output_row(traced, segment, row)
    is_last = at == len(traced.segments) - 1
    place = 0 if is_last else channels_at(traced.operations, traced.starts[at + 1], output)
    parameters = {path: one.numel() for path, one in segment.named_parameters()}
    return SegmentForm(Features(output, place), parameters)


def own_followings(
    method: StageMethod, traced: TracedNetwork, bounds: Sequence[int], stages: Iterable[int]
) -> dict[int, nn.Module]:
    """Stage -> the first segment above it, for each of `stages` whose auxiliary modules copy it.

    Args:
        bounds: first segment of every stage.
    """
    copying = (j for j in stages if j < len(bounds) - 1 and method.copies_following(j))
    found = {j: following_segment(traced, bounds[j + 1]) for j in copying}
    return {j: segment for j, segment in found.items() if segment is not None}
