"""AugLocal: the head of a stage has the form of layers that follow in the network.

Ma et al., Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024
(arXiv 2402.17318). The head of stage j has d_j layers, a global average pool and a linear layer.
Layer i of d_j, counted from 1, resembles the segment at round(i n / d_j) of the n segments above
the stage, counted from 1. The heads become smaller up the chain (the paper's pyramid):

    d_j = max(1, round(d (1 - r / 2) + r / 2)),   r = j / (K - 2)

where d is `local.depth`, and never more than n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from dglpipe.config import AuglocalConfig
from dglpipe.errors import ConfigError
from dglpipe.methods.local.base import LocalObjective
from dglpipe.models.blocks import average_pool
from dglpipe.models.features import Boundary, Layer
from dglpipe.models.heads import HEAD
from dglpipe.partition.pipeline_spec import PipelineSpec


class Auglocal(LocalObjective):
    """The loss of a head that resembles the network above the stage."""

    settings: AuglocalConfig

    @property
    def kind(self) -> str:
        return f"{self.settings} {self.depth}"

    @property
    def depth(self) -> int:
        """d_j, for a network with enough segments."""
        position = self.stage / max(1, self.stages - 2)
        return max(1, round(self.settings.depth * (1 - position / 2) + position / 2))

    def check_cut(self, spec: PipelineSpec) -> None:
        """Refuses a depth that stage 0 cannot have."""
        if spec.stages == 1:
            return
        above = max(1, len(spec.layers) - spec.bounds[1])
        if self.settings.depth > above:
            allowed = f"1 to {above}, the segments above stage 0"
            raise ConfigError("local.depth", self.settings.depth, allowed)

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """The head."""
        features, above = boundary.features, boundary.above
        depth = min(self.depth, len(above))
        layers = [above[round(at * len(above) / depth) - 1] for at in range(1, depth + 1)]

        def head() -> nn.Module:
            adapter = features.adapter()
            parts: list[nn.Module] = [] if adapter is None else [adapter]
            channels, side = features.channels, features.side
            for layer in layers:
                build = _on_vectors if side is None else _BLOCKS[layer.kind]
                parts.append(build(channels, layer))
                if side is not None and _stride(channels, layer) == 2:
                    side = (side[0] + 1) // 2, (side[1] + 1) // 2
                channels = layer.channels
            if side is not None:
                parts += [average_pool(side, (1, 1)), nn.Flatten()]
            return nn.Sequential(*parts, nn.Linear(channels, boundary.classes))

        return {HEAD: head}


def _stride(channels: int, layer: Layer) -> int:
    """2 where the network becomes wider, 1 elsewhere."""
    return 2 if layer.channels > channels else 1


def _plain(channels: int, layer: Layer) -> nn.Module:
    stride = _stride(channels, layer)
    return nn.Sequential(
        nn.Conv2d(channels, layer.channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(layer.channels),
        nn.ReLU(inplace=True),
    )


def _residual(channels: int, layer: Layer) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, Bottleneck  # takes seconds

    block = Bottleneck if layer.kind == "bottleneck" else BasicBlock
    stride, shortcut = _stride(channels, layer), None
    if channels != layer.channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, layer.channels, 1, stride, bias=False),
            nn.BatchNorm2d(layer.channels),
        )
    own: nn.Module = block(channels, layer.channels // block.expansion, stride, shortcut)
    return own


def _on_vectors(channels: int, layer: Layer) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, layer.channels), nn.ReLU(inplace=True))


_BLOCKS: Mapping[str, Callable[[int, Layer], nn.Module]] = {
    "plain": _plain,
    "basic": _residual,
    "bottleneck": _residual,
}
"""Kind of a layer -> builder of a layer like it."""
