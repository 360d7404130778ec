"""What a handler of the importer knows of the call it translates, and the table of handlers.

A handler gets the :class:`Context` of its call and the arguments of the ATen operation by their schema names.
Arguments that depend on the image are :class:`~mcfhe.graph.symbolic.Value`; everything else is a constant already
(a tensor, a number, a list).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph.nodes import MAX_DEGREE, Node, Shape
from mcfhe.graph.symbolic import GraphBuilder, Value

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
HANDLERS: dict[str, Handler] = {}


def handles(*operations: str) -> Callable[[H], H]:
    """Register a handler for ATen operations, named without ``aten::`` and overload."""

    def register(handler: H) -> H:
        for operation in operations:
            HANDLERS[operation] = handler
        return handler

    return register


def pair(values: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) from torch's one or two numbers."""
    return (int(values[0]), int(values[-1]))


@dataclass(frozen=True, slots=True)
class Context:
    """One call in the exported graph."""

    builder: GraphBuilder
    name: str  # layer in the user's model
    where: str  # the same, for a message
    output_shape: tuple[int, ...] | None  # with the batch, as torch computed it
    batch: int

    def refuse(self, reason: str) -> NoReturn:
        raise UnsupportedLayerError(f"{self.where} {reason}")

    def shape(self, value: Value) -> Shape:
        return self.builder.shapes[value.base]

    def node(self, value: Any) -> int:
        """Index of the graph value equal to ``value``, for a layer that is no polynomial."""
        if not isinstance(value, Value):
            self.refuse("computes on a constant where the image's values are expected")
        if value.view is not None:
            self.refuse(f"works on a view of shape (batch, {str(value.view)[1:-1]}); use Flatten, or view(batch, -1)")
        return self.builder.materialise(value)

    def array(self, value: Any, what: str) -> np.ndarray:
        """A constant as finite float64 numpy array."""
        if isinstance(value, Value):
            self.refuse(f"has a {what} that depends on the image; only constants can be used there")
        array = np.array(torch.as_tensor(value).detach().cpu().to(torch.float64).numpy())
        if not np.isfinite(array).all():
            raise ParameterError(
                f"{self.where}: its {what} holds NaN or infinity; train again or repair the checkpoint"
            )
        return array

    def coefficients(self, value: Any, like: Value) -> np.ndarray:
        """A constant operand as a polynomial of degree 0 in ``like``: one number, or one a channel."""
        shape = self.shape(like)
        full = (self.batch, *shape)
        array = self.array(value, "constant")
        try:
            values = np.broadcast_to(array, full)
        except ValueError:
            self.refuse(f"combines {full[1:]} with a constant of shape {array.shape}; use one number per channel")
        by_channel: np.ndarray = values[0].reshape(shape[0], -1)[:, :1]
        if not (values == by_channel.reshape(shape[0], *(1,) * (len(shape) - 1))).all():
            self.refuse("has a constant that differs between positions; use one number per channel")
        return by_channel if (by_channel != by_channel[0]).any() else by_channel[:1]

    def append(self, node: Node) -> Value:
        """The value of a new layer."""
        return self.builder.append(node)

    def polynomial(self, value: Value, coefficients: np.ndarray) -> Value:
        """``value`` under other coefficients, checked."""
        if value.view is not None:
            self.node(value)
        result = value.with_coefficients(coefficients, self.name)
        if result.degree > MAX_DEGREE:
            self.refuse(f"makes a polynomial of degree {result.degree}; at most {MAX_DEGREE} between two layers")
        if not np.isfinite(result.coefficients).all():
            raise ParameterError(f"{self.where}: a coefficient is not finite (a division by zero, or too large)")
        return result
