"""Emulated links."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config.checks import require_number


@dataclass(kw_only=True, slots=True)
class LinkConfig:
    """Emulated latency and bandwidth of the links between stages."""

    delay_ms: float = 0.0
    """Latency added to every message, in milliseconds; 0 to 60000; 0: none."""
    bandwidth_mbps: float | None = None
    """Bandwidth of every link, in megabits per second; from 0.001; null: not
    limited."""

    def __post_init__(self) -> None:
        require_number("link.delay_ms", self.delay_ms, 0, 60_000)
        if self.bandwidth_mbps is not None:
            require_number("link.bandwidth_mbps", self.bandwidth_mbps, 0.001)

    @property
    def is_emulated(self) -> bool:
        """Whether the links are emulated at all."""
        return bool(self.delay_ms or self.bandwidth_mbps)

    @property
    def delay(self) -> float:
        """Latency in seconds."""
        return self.delay_ms / 1e3

    @property
    def rate(self) -> float:
        """Bandwidth in bytes per second; infinite if not limited."""
        return self.bandwidth_mbps * 1e6 / 8 if self.bandwidth_mbps else float("inf")
