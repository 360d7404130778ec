"""Where a program is cut into stages: :func:`refresh`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from mcfhe.arguments import require, whole
from mcfhe.errors import DepthError, ParameterError, UnsupportedLayerError
from mcfhe.graph.compiled import Compiled
from mcfhe.graph.floats import float_values
from mcfhe.graph.nodes import Flatten, Graph, Input, Node, Poly
from mcfhe.graph.report import cost_of
from mcfhe.graph.settings import Settings
from mcfhe.modular.constants import scaled_constants
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE, PROFILES
from mcfhe.staged.cut_search import CutSearch
from mcfhe.staged.program import StagedProgram
from mcfhe.staged.spec import TOP, Levels

__all__ = ["refresh"]

_ELEMENTS = 1 << 24  # float64 values that are alive at once while ranges are measured
_MARGIN = 0.05  # of the range seen, on either side
_LEVEL_BITS = 2  # bits of the input's scale below one level


def refresh(
    program: Any,
    calibration: Any,
    cuts: str | Sequence[str] = "auto",
    max_limbs: int | None = None,
    profile: str = DEFAULT_PROFILE,
    *,
    scheme: str | None = None,
    max_degree: int | None = None,
    precision_bits: int | None = None,
) -> StagedProgram:
    """Cut a program into stages between which the client decrypts, rounds and encrypts again.

    Args:
        program: as compiled, with ``for_refresh=True`` where it is too deep to be a program; its rounded weights are
            kept. For lattice stages of a modular program activations of degree 1, 3 and 4 become squares first.
        calibration: uint8 ``[n, C, H, W]``, images like those to come, for the range of values at the cuts.
        cuts: names of the layers after which to cut, or "auto": as few cuts as keep every stage within the limits,
            placed for the least cost. Modular: limbs times multiply-adds, with the values sent counted as one each;
            without ``max_limbs``, one cut. Lattice: evaluation by :mod:`mcfhe.lattice.work` and the client's encryption
            and decryption; of the layers between two activations only the one with the fewest values is looked at, and
            what contains a stage that does not fit is taken not to fit either.
        max_limbs: of any stage, 1 or more; in the lattice scheme of a fresh ciphertext.
        profile: modular only: whose limbs are counted.
        scheme: of the stages, "modular" or "lattice"; by default the program's own.
        max_degree: lattice only: the largest ring degree of any stage, 4,096..32,768 (the default).
        precision_bits: lattice only, of every stage, as in :func:`mcfhe.compile`; by default what was given there with
            ``for_refresh``, else 12.

    Returns:
        A :class:`mcfhe.StagedProgram`. The client sees the values at the cuts, nobody else does. Modular stages are
        exact: levels come from exact integers. Lattice stages are not: the noise of a decrypted value can give it a
        neighbouring level, see :meth:`mcfhe.StagedProgram.predict_levels`; levels are encrypted without any.

    Raises:
        ParameterError: no calibration images or of another shape, a layer that is not there or whose value is not all
            that later layers need, a limit out of range, no cuts within the limits, or a program that needs none;
            names the layer.
        UnsupportedLayerError: an activation that the lattice scheme does not run: degree 5 or more, or a constant.
    """
    require("program", program, Compiled, "give what mcfhe.compile returns")
    images = calibration.detach().cpu().numpy() if isinstance(calibration, torch.Tensor) else np.asarray(calibration)
    if images.dtype != np.uint8 or images.shape[1:] != program.input_shape or not len(images):
        raise ParameterError(
            f"calibration: {images.dtype} of shape {images.shape}; give at least one image, uint8 "
            f"[batch, {str(program.input_shape)[1:-1]}]"
        )
    if max_limbs is not None and whole("max_limbs", max_limbs) < 1:
        raise ParameterError(f"max_limbs = {max_limbs} must be 1 or more")
    maker = _maker(program, scheme, profile, max_limbs, max_degree, precision_bits)
    cutter = _Cutter(program, images, maker)
    if isinstance(cuts, str) and cuts == "auto":
        return cutter.staged(cutter.best())
    if isinstance(cuts, str) or not isinstance(cuts, Iterable) or not cuts:
        raise ParameterError(f"cuts = {cuts!r}: give names of layers, or 'auto'")
    staged = cutter.staged(cutter.named(cuts))
    if max_limbs is not None and max(staged.limbs(profile)) > max_limbs:
        raise ParameterError(f"cuts: the stages need {staged.limbs(profile)} limbs, max_limbs is {max_limbs}")
    return staged


class _Maker(Protocol):
    """What a scheme knows of stages."""

    limits: str  # in words; empty where there are none, and one cut is made
    monotone: bool  # see CutSearch
    every_place: bool  # whether more than one layer between two activations is looked at

    def prepared(self, graph: Graph, settings: Settings) -> tuple[Graph, Settings]:
        """What is cut, of a compiled network: layers that the scheme runs, and their scales."""

    def make(self, graph: Graph, settings: Settings, scale_bits: int | None, explain: bool) -> Any:
        """A stage's program; ParameterError if there is none, which says all about it only with ``explain``.
        ``scale_bits``: what its levels need as an input."""

    def cost(self, stage: Any) -> float | None:
        """What "auto" minimises the sum of; None beyond the limits."""

    def bound(self, graph: Graph) -> float:
        """At most the cost, without a plan."""


def _maker(
    program: Any,
    scheme: str | None,
    profile: str,
    max_limbs: int | None,
    max_degree: int | None,
    precision_bits: int | None,
) -> _Maker:
    scheme = program.scheme if scheme is None else scheme
    if scheme == "lattice":
        from mcfhe.lattice.cutting import LatticeStages

        if precision_bits is None:
            precision_bits = getattr(program, "precision_bits", 12)
        return LatticeStages.within(max_degree, max_limbs, precision_bits)
    if scheme != "modular":
        raise ParameterError(f"scheme {scheme!r}: choose one of modular, lattice")
    if program.scheme != "modular":
        raise ParameterError("scheme: a lattice program is cut into lattice stages; compile it for the modular scheme")
    if max_degree is not None:
        raise ParameterError("max_degree: belongs to the lattice scheme; the modular one has no ring, only max_limbs")
    if profile not in PROFILES:
        raise ParameterError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return _ModularStages(profile, max_limbs)


class _ModularStages:
    monotone = False  # a later start may have a finer scale
    every_place = True

    def __init__(self, profile: str, max_limbs: int | None) -> None:
        self.profile, self.max_limbs = profile, max_limbs
        self.limits = "" if max_limbs is None else f"max_limbs = {max_limbs}"

    def prepared(self, graph: Graph, settings: Settings) -> tuple[Graph, Settings]:
        return graph, settings

    def make(self, graph: Graph, settings: Settings, scale_bits: int | None, explain: bool) -> Program:
        if settings.weight_bits is not None and scale_bits is not None:  # by the letter all layers share one
            settings = replace(settings, scale_bits=scale_bits)
        return Program(graph, settings)

    def cost(self, stage: Program) -> float | None:
        plan, certificate = stage.integer_program(self.profile), stage.certificate(self.profile)
        cost = cost_of(plan, certificate, stage.settings.modulus_bits, 1, public_key=False)
        if self.max_limbs is not None and cost.limbs > self.max_limbs:
            return None
        sent = math.prod(plan.input_shape) + math.prod(plan.output_shape)
        return float(cost.limbs * (cost.macs + sent))

    def bound(self, graph: Graph) -> float:
        return float(math.prod(graph.input_shape) + math.prod(graph.output_shape))


class _Cutter:
    def __init__(self, program: Any, images: np.ndarray, maker: _Maker) -> None:
        self.graph, self.settings = maker.prepared(program.graph, program.settings)
        self.maker = maker
        self.places = _single_values(self.graph)
        self._images = images
        self._made: dict[tuple[int, int], Any] = {}

    def named(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of layers; ParameterError for one after which a cut is impossible."""
        known = {self.graph.nodes[i].name: i for i in self.places}
        unknown = [name for name in names if name not in tuple(known)]
        if unknown:
            raise ParameterError(
                f"cuts: no cut after layer {unknown[0]!r}; possible after {', '.join(known) or 'none'}"
            )
        return tuple(sorted({known[name] for name in names}))

    def best(self) -> tuple[int, ...]:
        """Fewest cuts with all stages within the limits, then the least cost."""
        places = self.places if self.maker.every_place else _narrowest(self.graph, self.places)
        end, limits = len(self.graph.nodes) - 1, self.maker.limits
        search = CutSearch(0, places, end, self._cost, self._bound, self.maker.monotone)
        found = search.best(range(len(places) + 1) if limits else (1,))
        if found is None:
            raise ParameterError(
                f"{limits}: no cuts keep every stage within it; raise it, or use coarser scales"
                if limits
                else "cuts: there is no value after which a cut is possible"
            )
        if not found:
            raise ParameterError(f"{limits}: the program fits without a cut")
        return found

    def _cost(self, start: int, end: int) -> float | None:
        try:
            return self.maker.cost(self.stage(start, end))
        except UnsupportedLayerError:
            raise
        except ParameterError:  # too deep, or orders beyond any use
            return None

    def _bound(self, start: int, end: int) -> float:
        return self.maker.bound(_between(self.graph, start, end))

    def staged(self, cuts: tuple[int, ...]) -> StagedProgram:
        ends = (0, *cuts, len(self.graph.nodes) - 1)
        stages = []
        for index, (start, end) in enumerate(itertools.pairwise(ends)):
            try:
                stages.append(self.stage(start, end, explain=True))
            except ParameterError as error:
                name = self.graph.nodes[end].name
                what = f"{error.what}; cut it once more" if isinstance(error, DepthError) else str(error)
                raise type(error)(f"cuts: stage {index + 1}, up to layer {name!r}: {what}") from None
        return StagedProgram(tuple(stages), tuple(self.graph.nodes[i].name for i in cuts))

    def stage(self, start: int, end: int, explain: bool = False) -> Any:
        """The program that computes value ``end`` from value ``start``, made once."""
        if (start, end) not in self._made:
            self._made[start, end] = self._make(start, end, explain)
        return self._made[start, end]

    def _make(self, start: int, end: int, explain: bool) -> Any:
        graph = _between(self.graph, start, end)
        settings = self.settings
        if settings.weight_bits is not None:
            paying = scaled_constants(graph)
            settings = replace(
                settings, weight_bits=tuple((n, b) for n, b in settings.weight_bits if n in paying), letter=None
            )
        if start:
            levels = self.levels[start]
            settings = replace(settings, mean=levels.mean, std=levels.std)
        if end < len(self.graph.nodes) - 1:
            settings = replace(settings, labels=tuple(f"value {i}" for i in range(graph.output_shape[0])))
        return self.maker.make(graph, settings, _scale_bits(self.levels[start]) if start else None, explain)

    @cached_property
    def levels(self) -> dict[int, Levels]:
        """Levels at every possible cut, from the float graph on the calibration images."""
        settings, graph = self.settings, self.graph
        mean, std = (np.array(v)[:, None, None] for v in (settings.mean, settings.std))
        batch = max(1, _ELEMENTS // sum(math.prod(shape) for shape in graph.shapes))
        ends: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {place: [] for place in self.places}
        for first in range(0, len(self._images), batch):
            values = float_values(graph, (self._images[first : first + batch] / 255 - mean) / std)
            for place, found in ends.items():
                rows = values[place].reshape(len(values[place]), graph.shapes[place][0], -1).numpy()
                found.append((rows.min(axis=(0, 2)), rows.max(axis=(0, 2))))
        return {
            place: _levels(_as_map(graph.shapes[place]), np.min([e[0] for e in v], 0), np.max([e[1] for e in v], 0))
            for place, v in ends.items()
        }


def _narrowest(graph: Graph, places: Sequence[int]) -> tuple[int, ...]:
    """Of the places between two activations the last one with the fewest values."""
    depths: list[int] = []
    for node in graph.nodes:
        depths.append(max((depths[i] for i in node.inputs), default=0) + isinstance(node, Poly))
    best: dict[int, int] = {}
    for place in places:
        known = best.setdefault(depths[place], place)
        if math.prod(graph.shapes[place]) <= math.prod(graph.shapes[known]):
            best[depths[place]] = place
    return tuple(sorted(best.values()))


def _single_values(graph: Graph) -> tuple[int, ...]:
    """Values that are all that later layers read: after them a cut is possible. The input and the output are none."""
    last_read = [
        max((i for i, n in enumerate(graph.nodes) if v in n.inputs), default=v) for v in range(len(graph.nodes))
    ]
    return tuple(
        place
        for place in range(1, len(graph.nodes) - 1)
        # a flattened map is the same values with a range for each, where the map has one for each channel
        if not isinstance(graph.nodes[place], Flatten) and all(last_read[v] <= place for v in range(place))
    )


def _between(graph: Graph, start: int, end: int) -> Graph:
    """The layers after value ``start`` up to value ``end``, a vector; ``start`` becomes an image (C, H, W)."""
    nodes: list[Node] = [Input(name="input", inputs=(), shape=_as_map(graph.shapes[start]))]
    position = {start: 0}
    if len(graph.shapes[start]) == 1:
        nodes.append(Flatten(name="refreshed", inputs=(0,)))
        position[start] = 1
    for index in range(start + 1, end + 1):
        node = graph.nodes[index]
        position[index] = len(nodes)
        nodes.append(replace(node, inputs=tuple(position[i] for i in node.inputs)))
    if len(graph.shapes[end]) == 3:
        nodes.append(Flatten(name="values", inputs=(len(nodes) - 1,)))
    return Graph(tuple(nodes))


def _as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)


def _levels(shape: tuple[int, int, int], low: np.ndarray, high: np.ndarray) -> Levels:
    """256 levels from a little below the smallest value seen of each channel to a little above the largest."""
    width = np.maximum(high - low, 2.0**-20 * np.maximum(1.0, np.abs(low)))
    low, width = low - _MARGIN * width, (1 + 2 * _MARGIN) * width
    std = 1 / width
    return Levels(shape, tuple(map(float, -low * std)), tuple(map(float, std)))


def _scale_bits(levels: Levels) -> int:
    """The input's scale under which one level of the median channel is 2**_LEVEL_BITS or more."""
    step = float(np.median(1 / (TOP * np.array(levels.std))))
    return min(max(math.ceil(_LEVEL_BITS - math.log2(step)), 1), 20)
