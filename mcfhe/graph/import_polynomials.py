"""Importer handlers of elementwise arithmetic: every spelling of a polynomial, and residual adds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mcfhe.errors import ParameterError
from mcfhe.graph import symbolic
from mcfhe.graph.import_context import Context, handles
from mcfhe.graph.nodes import MAX_DEGREE, Add
from mcfhe.graph.symbolic import Value


@handles("add")
def add(context: Context, self: Any, other: Any, alpha: float = 1, *, sign: float = 1) -> Value:
    """self + sign * alpha * other."""
    factor = sign * float(alpha)
    scaled = multiply(context, other, factor) if isinstance(other, Value) and factor != 1 else other
    if isinstance(self, Value) and isinstance(scaled, Value):
        if context.shape(self) != context.shape(scaled):
            context.refuse(f"adds values of shapes {context.shape(self)} and {context.shape(scaled)}; make them equal")
        if self.base == scaled.base:
            return context.polynomial(self, symbolic.add(self.coefficients, scaled.coefficients))
        return context.append(Add(name=context.name, inputs=(context.node(self), context.node(scaled))))
    if isinstance(self, Value):
        offset = symbolic.multiply(context.coefficients(other, self), symbolic.constant(np.array([factor])))
        return context.polynomial(self, symbolic.add(self.coefficients, offset))
    return context.polynomial(scaled, symbolic.add(scaled.coefficients, context.coefficients(self, scaled)))


@handles("sub", "subtract")
def _subtract(context: Context, self: Any, other: Any, alpha: float = 1) -> Value:
    return add(context, self, other, alpha, sign=-1)


@handles("rsub")
def _reverse_subtract(context: Context, self: Any, other: Any, alpha: float = 1) -> Value:
    return add(context, other, self, alpha, sign=-1)


@handles("mul")
def multiply(context: Context, self: Any, other: Any) -> Value:
    """self * other, where at least one of them depends on the image."""
    if isinstance(self, Value) and isinstance(other, Value):
        if self.base != other.base:
            context.refuse(
                "multiplies two different values; only polynomials of one value can be run (x * x, not x * y)"
            )
        return context.polynomial(self, symbolic.multiply(self.coefficients, other.coefficients))
    value, factor = (self, other) if isinstance(self, Value) else (other, self)
    return context.polynomial(value, symbolic.multiply(value.coefficients, context.coefficients(factor, value)))


@handles("div", "true_divide")
def _divide(context: Context, self: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if isinstance(other, Value):
        context.refuse("divides by a value that depends on the image; use a polynomial")
    if rounding_mode is not None:
        context.refuse("rounds, which encrypted data does not allow; use a plain division by a constant")
    divisor = context.coefficients(other, self)
    if (divisor == 0).any():
        raise ParameterError(f"{context.where}: division by zero")
    return context.polynomial(self, self.coefficients / divisor)


@handles("neg")
def _negate(context: Context, self: Value) -> Value:
    return context.polynomial(self, -self.coefficients)


@handles("square")
def _square(context: Context, self: Value) -> Value:
    return multiply(context, self, self)


@handles("pow", "float_power")
def _power(context: Context, self: Any, exponent: Any) -> Value:
    if isinstance(exponent, Value):
        context.refuse("has an exponent that depends on the image; use a polynomial")
    exponents = context.array(exponent, "exponent")
    number = float(exponents.flat[0]) if exponents.size else math.nan
    if (exponents != number).any() or number != int(number) or not 0 <= number <= MAX_DEGREE:
        context.refuse(f"raises to the power {exponents.squeeze()}; use one whole exponent in 0..{MAX_DEGREE}")
    if self.degree * number > MAX_DEGREE:
        context.refuse(f"makes a polynomial of degree {self.degree * int(number)}; at most {MAX_DEGREE}")
    return context.polynomial(self, symbolic.power(self.coefficients, int(number)))


@handles("addcmul")
def _add_product(context: Context, self: Any, tensor1: Any, tensor2: Any, value: float = 1) -> Any:
    if isinstance(tensor1, Value) or isinstance(tensor2, Value):
        return add(context, self, multiply(context, tensor1, tensor2), value)
    return add(context, self, tensor1 * tensor2, value)
