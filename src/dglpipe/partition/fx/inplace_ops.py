"""In-place arithmetic (`x += y`) as operations of a traced graph.

`torch.fx` traces `x += y` as `x = x + y`. The result differs in dtype, and if another name or a
view reads the memory of x. The functions of this module have the same names as in `operator`. The
functions of `operator` do not work: fx generates statements, which would change a number that
another operation reads.
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
    """A tensor or a number while a network is traced."""

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
        if name not in _OWN:  # fx does not record `x.data = y`
            raise TypeError(f"the attribute {name!r} of a tensor is set in a forward")
        super().__setattr__(name, value)


_OWN = frozenset(vars(fx.Proxy(fx.Graph().placeholder("x"))))
"""Attributes of the proxy, in contrast to attributes of the traced tensor."""
