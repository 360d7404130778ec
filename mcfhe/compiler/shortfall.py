"""Why a key is too small for a program, or every key is, and the smallest changes that would fix it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mcfhe.arguments import require
from mcfhe.errors import ParameterError
from mcfhe.graph.certificate import LayerBound
from mcfhe.graph.order import Order
from mcfhe.graph.passes import apply_passes, select_passes
from mcfhe.graph.report import limbs_needed
from mcfhe.graph.settings import Settings
from mcfhe.modular.constants import relative_bits
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.modular.params import MAX_LIMBS, MAX_MODULUS, Moduli, widest_product
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE, PROFILES

__all__ = ["Change", "Explanation", "explain", "require_some_basis"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change that makes the program fit, all else as it is."""

    what: str
    required_bits: int  # of the moduli's product, after it


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is needed, what is there.

    Attributes:
        profile: which of the program's plans.
        required_bits: bit length of what the product of the moduli must exceed.
        available_bits: bit length of what that product does exceed.
        output: the layer that sets the requirement, with its bound; others may be wider, since only scores must fit.
        order: of the scores.
        changes: each is enough by itself: more limbs, passes, less guard, coarser scales; empty if all fits.
    """

    profile: str
    required_bits: int
    available_bits: int
    output: LayerBound
    order: Order
    changes: tuple[Change, ...]

    @property
    def short_bits(self) -> int:
        """Bits that are missing, 0 if the program fits."""
        return max(0, self.required_bits - self.available_bits)

    def __str__(self) -> str:
        head = (
            f"profile {self.profile}: the scores of layer {self.output.name!r} have order (t={self.order.t}, "
            f"k={self.order.k}) and up to {self.output.bits} bits; with sign and guard the moduli must hold "
            f"{self.required_bits} bits, and hold {self.available_bits}"
        )
        if not self.short_bits:
            return f"{head}: it fits"
        fixes = [f"  - {change.what} ({change.required_bits} bits required then)" for change in self.changes]
        return "\n".join([f"{head}: {self.short_bits} bits short. Any one of these is enough:", *fixes])


def explain(program: Program, key: EvaluationKey | Moduli, profile: str = DEFAULT_PROFILE) -> Explanation:
    """Does the program fit a key, and if not, what is the least that would make it fit?

    Args:
        program: as compiled; a changed one is planned and certified for every change proposed.
        key: an evaluation key or its moduli, without redundant ones.
        profile: patent or hardened.
    """
    require("program", program, Program, "give a program of the modular scheme that is not cut, or one stage of it")
    require("key", key, (EvaluationKey, Sequence), "give an evaluation key or its moduli")
    moduli = key.moduli if isinstance(key, EvaluationKey) else Moduli(key)
    product = math.prod(moduli)
    certificate = program.certificate(profile)
    fits = product > certificate.required_product
    available = (product - 1).bit_length()
    return Explanation(
        profile=profile,
        required_bits=certificate.required_bits,
        available_bits=available if fits else min(available, certificate.required_bits - 1),
        output=certificate.layers[-1],
        order=program.integer_program(profile).output_order,
        changes=() if fits else tuple(_changes(program, product, profile)),
    )


def _changes(program: Program, product: int, profile: str) -> Iterator[Change]:
    settings, certificate = program.settings, program.certificate(profile)
    missing = -(-(certificate.required_product + 1) // product)
    limbs = limbs_needed(missing, settings.modulus_bits)
    yield Change(
        f"a key with {limbs} more moduli of {settings.modulus_bits} bits: generate it from this program's client spec",
        certificate.required_bits,
    )
    if settings.bounds == "interval":
        tighter = Program(program.graph, replace(settings, bounds="quadratic")).certificate(profile)
        if product > tighter.required_product:
            yield Change('bounds="quadratic" in compile()', tighter.required_bits)
    if settings.weight_bits is None:
        yield from _with_passes(program, product, profile)
    guard = settings.guard_bits - (missing - 1).bit_length()
    if guard >= 0:
        lost = "" if guard >= settings.modulus_bits else ", which no longer finds every single damaged limb"
        yield from _if_it_fits(
            program, replace(settings, guard_bits=guard), product, profile, f"guard_bits={guard}{lost}"
        )
    for name, values in _lower_scales(settings):
        for what, changed in values:
            found = list(_if_it_fits(program, changed, product, profile, f"{what} for {name}"))
            if found:
                yield from found
                break


def _with_passes(program: Program, product: int, profile: str) -> Iterator[Change]:
    """The passes on a program by the letter, whose constants are rounded already: what its limbs would be."""
    names = select_passes("default")
    graph = apply_passes(program.graph, names)
    bits = relative_bits(graph, program.settings.scale_bits)
    settings = replace(program.settings, passes=names, weight_bits=tuple(sorted(bits.items())))
    required = Program(graph, settings).certificate(profile)
    if product > required.required_product:
        yield Change('passes="default" in compile()', required.required_bits)


def _lower_scales(settings: Settings) -> Iterator[tuple[str, Iterator[tuple[str, Settings]]]]:
    """For the input and each layer: its settings with fewer and fewer bits."""

    def shared() -> Iterator[tuple[str, Settings]]:
        for bits in range(settings.scale_bits - 1, 0, -1):
            yield f"scale_bits={bits}", replace(settings, scale_bits=bits)

    yield ("all layers" if settings.weight_bits is None else "the input"), shared()
    for name, finest in settings.weight_bits or ():

        def layer(name: str = name, finest: int = finest) -> Iterator[tuple[str, Settings]]:
            for bits in range(finest - 1, -1, -1):
                scales = dict(settings.weight_bits or ()) | {name: bits}
                yield f"weight_bits={bits}", replace(settings, weight_bits=tuple(sorted(scales.items())))

        yield f"layer {name!r}", layer()


def _if_it_fits(program: Program, settings: Settings, product: int, profile: str, what: str) -> Iterator[Change]:
    try:  # by intervals, where the program has better bounds: there are many candidates
        required = Program(program.graph, replace(settings, bounds="interval")).certificate(profile)
    except ParameterError:  # a pool that such a scale would turn into zeros
        return
    if product > required.required_product:
        yield Change(what, required.required_bits)


def require_some_basis(program: Program) -> Program:
    """The program, if clients can draw a basis for one of its profiles; else ParameterError with what would help."""
    width = program.settings.modulus_bits
    profile = min(PROFILES, key=lambda name: program.certificate(name).required_product)
    certificate, order = program.certificate(profile), program.integer_program(profile).output_order
    required = certificate.required_product
    if widest_product(width) > required:
        return program
    widest = MAX_MODULUS.bit_length()
    fitting = next((bits for bits in range(width + 1, widest + 1) if widest_product(bits) > required), None)
    if fitting is None:
        changes = _changes(program, widest_product(widest), profile)
        fixes = [change.what for change in changes if "more moduli" not in change.what]
        fix = (
            " or ".join(fixes)
            or "fewer activations in a row, a lower degree or client refresh (compile with for_refresh=True)"
        )
    else:
        fix = f"modulus_bits={fitting}, {limbs_needed(required, fitting)} limbs"
    short = certificate.required_bits - widest_product(width).bit_length() + 1
    raise ParameterError(
        f"layer {certificate.layers[-1].name!r}: its scores of order (t={order.t}, k={order.k}) and up to "
        f"{certificate.layers[-1].bits} bits need moduli of {certificate.required_bits} bits together, {max(1, short)} "
        f"more than all primes of {width} bits hold (at most {MAX_LIMBS} limbs); use {fix}"
    )
