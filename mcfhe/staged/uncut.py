"""A compiled network that is there to be cut by :func:`mcfhe.refresh`, however deep it is."""

from __future__ import annotations

from dataclasses import dataclass

from mcfhe.graph.compiled import Compiled
from mcfhe.graph.nodes import Graph
from mcfhe.graph.settings import Settings


@dataclass(frozen=True, eq=False, slots=True)
class Uncut(Compiled):
    """What ``compile(for_refresh=True)`` gives: layers and scales, no plan or certificate of the whole.

    Attributes:
        graph: the layers, weights rounded to the grids of their scales.
        settings: normalisation, scales, labels.
        scheme: "modular" or "lattice", of the stages unless :func:`mcfhe.refresh` is told otherwise.
        precision_bits: of lattice stages.
    """

    graph: Graph
    settings: Settings
    scheme: str
    precision_bits: int
