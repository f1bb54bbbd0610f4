"""The input of the choice of a cut: network, settings, method, K."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dglpipe.config import BEFORE_POOL, Config
from dglpipe.data import DataInfo
from dglpipe.errors import ConfigError
from dglpipe.models.features import Boundary, Features, Following, Layer, SegmentForm
from dglpipe.models.heads import check_output
from dglpipe.models.meta import META, building
from dglpipe.partition.channels import channels_at
from dglpipe.partition.flops import Auxiliary, AuxiliaryAt, SegmentFlops, Shape, link_bytes
from dglpipe.partition.following import following_form, following_segment
from dglpipe.partition.layers import network_layers
from dglpipe.partition.memory import (
    AuxiliaryMemory,
    MemoryNeeds,
    NetworkMemory,
    auxiliary_memory,
    network_memory,
    optimizer_state,
)
from dglpipe.partition.segments import TracedNetwork
from dglpipe.partition.shape_prop import last_channels, propagate_shapes, row_before_pools
from dglpipe.partition.stage_method import StageMethod
from dglpipe.pipeline.precision import PRECISIONS


@dataclass(frozen=True, eq=False)
class CutProblem:
    """A network to cut into stages.

    Attributes:
        traced: the network of `config`, on meta unless its forward reads values of tensors.
        stages: K.
    """

    config: Config
    method: StageMethod
    data: DataInfo
    traced: TracedNetwork
    stages: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return image_shape(self.data)

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """Shape of one input row of every segment."""
        outputs = propagate_shapes(self.traced, (2, *self.image_shape))
        return [self.image_shape, *(shape[1:] for shape in outputs[:-1])]

    def require_fit(self) -> None:
        """Raises ConfigError if the images do not fit the network.

        Raises:
            NeedsValuesError: the network is on meta, and a segment reads values of tensors.
        """
        assert self.shapes

    @functools.cached_property
    def flops(self) -> SegmentFlops:
        """FLOPs of the segments."""
        return SegmentFlops(self.traced, self.shapes)

    def learner(self, j: int) -> int:
        """The stage whose auxiliary modules a cut above stage `j` has: the stage itself. For the
        last stage, which has none: the stage below."""
        return min(j, max(self.stages - 2, 0))

    def auxiliary_kind(self, j: int) -> str:
        """Equal for stages whose auxiliary modules are equal at equal cuts."""
        learner = self.learner(j)
        return f"{self.config.stage(learner).head} {self.method.auxiliary_kind(learner)}"

    def item_bytes(self, j: int) -> int:
        """Bytes of one element of the activations of stage `j`."""
        return PRECISIONS[self.config.stage(j).precision.name].item_bytes

    def auxiliary_at(
        self, j: int, meta: bool = True, refused: list[ConfigError] | None = None
    ) -> AuxiliaryAt:
        """The auxiliary modules of every cut, if stage `j` is below the cut.

        Args:
            meta: build the modules on meta.
            refused: collects the errors of modules that cannot be built or do not run.
        """
        stage = self.learner(j)
        head = self.config.stage(stage).head
        known: dict[tuple[object, ...], Auxiliary | None] = {}

        def modules_at(at: int) -> Auxiliary | None:
            output = self.shapes[at]
            reads_output = head.reads != BEFORE_POOL or self.method.reads_output(stage)
            before = None if reads_output else self.rows_before_pools[at]
            row = before or output
            boundary = self._boundary(at, row, stage)
            builders = self.method.auxiliary(boundary)
            copied = boundary.following and self.traced.signatures[at]
            key = boundary.features, before is not None, tuple(builders), boundary.above, copied
            if key not in known:
                hint = f"With head.reads=output it reads the pooled map {output}" if before else ""
                try:
                    modules = {name: _built(build, True) for name, build in builders.items()}
                    for name, module in modules.items():
                        check_output(name, module, row, boundary.classes, META, hint=hint)
                    if not meta:
                        builders = self.method.auxiliary(self._boundary(at, row, stage, False))
                        modules = {name: _built(build, False) for name, build in builders.items()}
                    own = tuple(modules.values())
                    known[key] = Auxiliary(own, row, bool(own) and before is not None)
                except ConfigError as error:
                    if refused is not None:
                        refused.append(error)
                    known[key] = None
            return known[key]

        return modules_at

    def _boundary(self, at: int, row: Shape, stage: int, meta: bool = True) -> Boundary:
        """The cut between `stage` and segment `at`.

        Args:
            row: shape of one row that the auxiliary modules read.
            meta: whether they are built on meta.
        """
        traced = self.traced
        features = Features(row, channels_at(traced.operations, traced.starts[at], row))
        classes = len(self.data.classes)
        return Boundary(
            features,
            classes,
            self.image_shape,
            self.config.stage(stage).head,
            at,
            self.width,
            stage,
            self.stages,
            self.layers[at:],
            self._following(at, meta) if self.method.copies_following(stage) else None,
        )

    def _following(self, at: int, meta: bool) -> Following | None:
        segment, form = following_segment(self.traced, at), self._forms[at]
        if segment is None or form is None:
            return None
        is_copied = meta and self.traced.device != META
        return Following(copy.deepcopy(segment).to(META) if is_copied else segment, form)

    @functools.cached_property
    def _forms(self) -> list[SegmentForm | None]:
        """The form of every segment; see `PipelineSpec.following`."""
        return [following_form(self.traced, at, row) for at, row in enumerate(self.shapes)]

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The form of every segment."""
        return network_layers(self.traced, self.shapes, self.width)

    @functools.cached_property
    def rows_before_pools(self) -> list[Shape | None]:
        """For the cut before each segment: shape of one row in front of the pools at the end of the
        segment below; None without pools."""
        rows = [row_before_pools(self.traced, at, row) for at, row in enumerate(self.shapes[:-1])]
        return [None, *rows]

    @functools.cached_property
    def width(self) -> int | None:
        """Channels of the network's last map."""
        return last_channels(self.traced, self.shapes[-1])

    @functools.cached_property
    def network_memory(self) -> NetworkMemory:
        """Memory of the segments."""
        return network_memory(self.traced, self.image_shape)

    def memory_needs(self, rows: int) -> list[MemoryNeeds]:
        """Memory of each stage as a function of its segments, by stage.

        Args:
            rows: rows per step on one replica.
        """
        known: dict[str, Callable[[int], AuxiliaryMemory]] = {}
        result = []
        for j in range(self.stages):
            own, depth = self.config.stage(j), self.config.pipeline.depth
            is_last = j == self.stages - 1
            auxiliary = known.setdefault(self.auxiliary_kind(j), self._auxiliary_memory(j))
            below = (self.item_bytes(j - 1), self.method.buffers(j - 1, depth)) if j else None
            result.append(
                MemoryNeeds(
                    network=self.network_memory,
                    auxiliary=auxiliary,
                    elements=link_bytes(self.shapes, 1),
                    optimizer_state=optimizer_state(own.optimizer),
                    rows=rows,
                    item_bytes=self.item_bytes(j),
                    below=below,
                    above=None if is_last else self.method.buffers(j, depth),
                    extras=(self._extras(j - 1), self._extras(j)),
                    share=self.method.activation_share(j, self.stages),
                    stash=self.method.stash(j, self.stages),
                    copies=self._copies,
                    image_elements=math.prod(self.image_shape),
                )
            )
        return result

    @functools.cached_property
    def _copies(self) -> list[int]:
        """Bytes of a message with the weights of each segment; empty if no stage copies one."""
        if not any(map(self.method.copies_following, range(self.stages - 1))):
            return []
        return [4 * sum(one.parameters.values()) if one else 0 for one in self._forms]

    def _extras(self, link: int) -> int:
        exists = 0 <= link < self.stages - 1
        return self.method.most_extra_bytes(link) if exists else 0

    def _auxiliary_memory(self, j: int) -> Callable[[int], AuxiliaryMemory]:
        modules_at = self.auxiliary_at(j)

        @functools.cache
        def memory_at(at: int) -> AuxiliaryMemory:
            found = modules_at(at)
            own = auxiliary_memory(*found[:2]) if found else auxiliary_memory((), ())
            network = self.network_memory
            ends = network.bodies if found and found.is_before_pools else network.segments
            return AuxiliaryMemory(own, ends[at - 1].saved)

        return memory_at


def _built(build: Callable[[], nn.Module], meta: bool) -> nn.Module:
    """Builds a module for its shapes; its weights are arbitrary."""
    with building(meta, 0):
        return build()


def image_shape(data: DataInfo) -> tuple[int, int, int]:
    """(C, H, W)"""
    return data.channels, data.height, data.width
