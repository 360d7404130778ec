"""Stages of the lattice scheme: how one is planned, and what it costs both sides (:mod:`mcfhe.staged.cutting`)."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from mcfhe.arguments import whole
from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Graph
from mcfhe.graph.passes.sums_of_squares import NAME as SUMS_OF_SQUARES
from mcfhe.graph.passes.sums_of_squares import outer_part, sums_of_squares
from mcfhe.graph.settings import Settings
from mcfhe.lattice.plan import DEGREES, Limits
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.scales import layer_scales
from mcfhe.lattice.search import MAX_LIMBS
from mcfhe.lattice.work import linear_work, work
from mcfhe.modular.constants import scaled_constants

# The client's share of a cut, in the units of mcfhe.lattice.work: one residue of a value that is encoded and encrypted,
# or decrypted and decoded. From the table in docs/lattice.md (seconds of SEAL over those of evaluation, three networks:
# 35, 57, 72 and 18, 22, 28).
ENCRYPT = 60.0
DECRYPT = 25.0
_NEW_BITS = 12  # of leading coefficients that a program of the modular scheme does not have: finer than its weights


class LatticeStages:
    """Plans stages within ``limits`` at ``precision`` bits (as ``precision_bits`` of :func:`mcfhe.compile`)."""

    monotone = True  # what contains more squares and wider bounds needs no fewer limbs
    every_place = False

    def __init__(self, precision: int, limits: Limits) -> None:
        self.precision, self.bounds = precision, limits
        limbs = "" if limits.limbs == MAX_LIMBS else f", max_limbs = {limits.limbs}"
        self.limits = f"max_degree = {limits.degree}{limbs}"

    @staticmethod
    def within(max_degree: int | None, max_limbs: int | None, precision_bits: int) -> LatticeStages:
        """ParameterError for a limit out of range."""
        degree = DEGREES[-1] if max_degree is None else max_degree
        if degree not in DEGREES:
            raise ParameterError(f"max_degree = {degree!r}: choose one of {', '.join(map(str, DEGREES))}")
        if not 4 <= whole("precision_bits", precision_bits) <= 24:
            raise ParameterError(f"precision_bits = {precision_bits} is not in 4..24")
        return LatticeStages(precision_bits, Limits(degree, MAX_LIMBS if max_limbs is None else max_limbs))

    def prepared(self, graph: Graph, settings: Settings) -> tuple[Graph, Settings]:
        """A compiled network whose activations are squares, as a lattice program has them, with a scale for each layer.

        Weights and their scales stay what they are. What stands for an activation of degree 1, 3 or 4 is exact algebra
        on its rounded coefficients; leading coefficients that come of it have at least ``_NEW_BITS`` bits, or all that
        they need. UnsupportedLayerError for a higher degree.
        """
        if SUMS_OF_SQUARES in settings.passes:  # compiled for this scheme
            return graph, settings
        known = settings.layer_bits
        if known is None:  # by the letter: all on one grid
            known = dict.fromkeys(scaled_constants(graph), settings.scale_bits)
        known |= {outer_part(name): bits for name, bits in known.items()}
        graph = sums_of_squares(graph, keep_weights=True)
        bits = layer_scales(graph, max(settings.scale_bits, _NEW_BITS), known)
        settings = replace(
            settings,
            amplification_bits=0,
            modulus_bits=30,
            guard_bits=0,
            passes=(*settings.passes, SUMS_OF_SQUARES),
            weight_bits=tuple(sorted(bits.items())),
            letter=None,
        )
        return graph, settings

    def make(self, graph: Graph, settings: Settings, scale_bits: int | None, explain: bool) -> LatticeProgram:
        """The program of a part of a network as :meth:`prepared` leaves it. ParameterError if it does not fit."""
        settings = settings if scale_bits is None else replace(settings, scale_bits=scale_bits)
        return LatticeProgram.planned(graph, settings, self.precision, limits=self.bounds, explain=explain)

    def cost(self, stage: LatticeProgram) -> float:
        """Of one request, whatever its batch: evaluation, and the client's encryption and decryption."""
        plan, level = stage.plan, stage.integer_program().levels[-1]
        sent = ENCRYPT * plan.limbs * prod(stage.input_shape) + DECRYPT * level.limbs * len(stage.labels)
        return plan.degree * (work(stage.graph, plan.limbs, plan.placements) + sent)

    def bound(self, graph: Graph) -> float:
        """At most the cost of any plan: one limb and two components in the smallest ring."""
        linear = sum(linear_work(n, prod(s)) for n, s in zip(graph.nodes[1:], graph.shapes[1:], strict=True))
        return DEGREES[0] * (2 * linear + ENCRYPT * prod(graph.input_shape) + DECRYPT * prod(graph.output_shape))
