"""`x += y` on tensors, as it is: on its own `torch.fx` makes a new tensor of it.

The difference shows where the memory of x is read again, by another name or as a view, and in
the type of the result. The functions have the names of those of `operator`, which fx would write
into its code as statements that give a number of the same name another value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

Function = Callable[[Any, Any], Any]


def iadd(value: Any, other: Any) -> Any:
    value += other
    return value


def isub(value: Any, other: Any) -> Any:
    value -= other
    return value


def imul(value: Any, other: Any) -> Any:
    value *= other
    return value


def itruediv(value: Any, other: Any) -> Any:
    value /= other
    return value


def ifloordiv(value: Any, other: Any) -> Any:
    value //= other
    return value


def imod(value: Any, other: Any) -> Any:
    value %= other
    return value


def ipow(value: Any, other: Any) -> Any:
    value **= other
    return value


def iand(value: Any, other: Any) -> Any:
    value &= other
    return value


def ior(value: Any, other: Any) -> Any:
    value |= other
    return value


def ixor(value: Any, other: Any) -> Any:
    value ^= other
    return value


ARITHMETIC: tuple[Function, ...] = (
    *(iadd, isub, imul, itruediv, ifloordiv, imod, ipow),
    *(iand, ior, ixor),
)


def _recorded(function: Function) -> Function:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class InPlaceProxy(fx.Proxy):
    """Stands for a tensor, or a number, while a network is traced."""

    __iadd__ = _recorded(iadd)
    __isub__ = _recorded(isub)
    __imul__ = _recorded(imul)
    __itruediv__ = _recorded(itruediv)
    __ifloordiv__ = _recorded(ifloordiv)
    __imod__ = _recorded(imod)
    __ipow__ = _recorded(ipow)
    __iand__ = _recorded(iand)
    __ior__ = _recorded(ior)
    __ixor__ = _recorded(ixor)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:  # x.data = y would be lost
            raise TypeError(f"the attribute {name!r} of a tensor is set in a forward")
        super().__setattr__(name, value)


_OWN = frozenset(vars(fx.Proxy(fx.Graph().placeholder("x"))))
"""What a proxy has besides the tensor's attributes."""
