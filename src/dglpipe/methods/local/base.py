"""The interface of local objectives, and the objective `task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from dglpipe.config import LocalConfig
from dglpipe.data import DataInfo
from dglpipe.methods.emission import Emission
from dglpipe.models.features import Boundary
from dglpipe.models.heads import HEAD, head_on
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.message import Field
from dglpipe.pipeline.stage_module import LocalBatch, Objective


class LocalObjective:
    """What one stage minimises: the auxiliary modules, the tensors and the loss that this needs.

    This class is the objective `task`: the loss of the head. The last stage has no auxiliary
    modules and minimises the loss of the network's own classifier.

    Args:
        settings: the group `local` of the stage.
        stage: j.
        stages: K.
        data: properties of the data set.
    """

    settings: LocalConfig
    acts_in_last_stage: ClassVar[bool] = False
    """Whether the objective changes the loss of the last stage, which has no head."""
    watches_branches: ClassVar[bool] = False
    """Whether `loss` reads the residual branches of the stage."""
    copies_following: ClassVar[bool] = False
    """Whether the head copies the first segment of the next stage, and follows its weights."""

    def __init__(self, settings: LocalConfig, stage: int, stages: int, data: DataInfo) -> None:
        self.settings = settings
        self.stage = stage
        self.stages = stages
        self.data = data

    @property
    def is_last(self) -> bool:
        """Whether the stage is the last of the chain."""
        return self.stage == self.stages - 1

    @property
    def kind(self) -> str:
        """Equal for stages that have the same auxiliary modules at the same cut, for equal
        heads."""
        return repr(self.settings)

    def check(self) -> None:
        """Checks that the objective fits the data set.

        Raises:
            ConfigError: it does not.
        """

    def check_cut(self, spec: PipelineSpec) -> None:
        """Checks that the objective fits the stage.

        Raises:
            ConfigError: it does not.
        """
        del spec

    def check_modules(self, auxiliary: Mapping[str, nn.Module]) -> None:
        """Checks the auxiliary modules that the method has built for the stage.

        Raises:
            ConfigError: the objective needs others.
        """
        del auxiliary

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """Builders of the auxiliary modules of the stage below `boundary`, by name.

        As `Method.auxiliary`. Not called for the last stage.
        """
        head, features = boundary.head, boundary.features
        return {HEAD: lambda: head_on(head, features, boundary.classes, boundary.width)}

    def fields(self, spec: PipelineSpec) -> tuple[Field, ...]:
        """The extra tensors that the stage reads from its message. They travel over every link
        from stage 0 to the stage, and stage 0 fills them."""
        del spec
        return ()

    def fields_down(self, spec: PipelineSpec) -> tuple[Field, ...]:
        """The tensors that the next stage sends down to the stage."""
        del spec
        return ()

    @property
    def lag(self) -> int | None:
        """`Method.delay` of these tensors; None: there are none."""
        return None

    @property
    def first_use(self) -> int:
        """The first step that uses them; 0: there are none."""
        return 0

    @property
    def copies_under_way(self) -> int:
        """Number of the messages down that a process keeps at the same time."""
        return 0

    @property
    def utilization(self) -> float:
        """`Method.utilization`, for one stage in each process."""
        return 1.0

    @property
    def extra_bytes(self) -> int:
        """Upper limit of the bytes of a row of `fields`, for every cut."""
        return 0

    @property
    def fills(self) -> Mapping[str, Callable[[Emission], Tensor]]:
        """Functions that fill these tensors in stage 0, by name; each returns (B, ...)."""
        return {}

    def follow(self, auxiliary: Mapping[str, nn.Module], weights: Tensor) -> None:
        """Uses the weights (n,) of the first segment of the next stage, in the auxiliary modules of
        the stage."""
        raise NotImplementedError

    def loss(self, batch: LocalBatch) -> Tensor:
        """The scalar to minimise, without its weight."""
        return batch.task_loss(batch.logits, batch.labels)

    @property
    def objective(self) -> Objective | None:
        """The local objective of the stage; None: the loss of the head."""
        weight = self.settings.weight
        if type(self).loss is LocalObjective.loss and weight == 1:
            return None
        return lambda batch: weight * self.loss(batch)
