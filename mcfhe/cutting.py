"""Where a program is cut into stages: :func:`refresh`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from mcfhe.errors import ParameterError
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.nodes import Flatten, Graph, Input, Node
from mcfhe.graph.report import cost_of
from mcfhe.modular.constants import scaled_constants
from mcfhe.program import Program
from mcfhe.staged import TOP, Levels, StagedProgram

__all__ = ["refresh"]

_BATCH = 250
_MARGIN = 0.05  # of the range seen, on either side
_LEVEL_BITS = 2  # bits of the input's scale below one level


def refresh(
    program: Program,
    calibration: Any,
    cuts: str | Sequence[str] = "auto",
    max_limbs: int | None = None,
    profile: str = "patent",
) -> StagedProgram:
    """Cut a program into stages between which the client decrypts, rounds and encrypts again.

    Args:
        program: as compiled; its rounded weights are kept.
        calibration: uint8 ``[n, C, H, W]``, images like those to come, for the range of values at the cuts.
        cuts: names of the layers after which to cut, or "auto": as few cuts as keep every stage within ``max_limbs``
            (without that, one cut), placed where the sum of limbs times multiply-adds, with the values sent counted as
            one each, is least.
        max_limbs: of any stage; 1 or more.
        profile: whose limbs are counted.

    Returns:
        A :class:`mcfhe.StagedProgram`. The client sees the values at the cuts, nobody else does.

    Raises:
        ParameterError: no calibration images or of another shape, a layer that is not there or whose value is not all
            that later layers need, or no cuts within ``max_limbs``; names the layer.
    """
    images = calibration.detach().cpu().numpy() if isinstance(calibration, torch.Tensor) else np.asarray(calibration)
    if images.dtype != np.uint8 or images.shape[1:] != program.input_shape or not len(images):
        raise ParameterError(
            f"calibration: {images.dtype} of shape {images.shape}; give at least one image, uint8 "
            f"[batch, {str(program.input_shape)[1:-1]}]"
        )
    cutter = _Cutter(program, images, profile)
    if isinstance(cuts, str) and cuts == "auto":
        return cutter.staged(cutter.best(max_limbs))
    if isinstance(cuts, str) or not cuts:
        raise ParameterError(f"cuts = {cuts!r}: give names of layers, or 'auto'")
    staged = cutter.staged(cutter.named(cuts))
    if max_limbs is not None and max(staged.limbs(profile)) > max_limbs:
        raise ParameterError(f"cuts: the stages need {staged.limbs(profile)} limbs, max_limbs is {max_limbs}")
    return staged


class _Cutter:
    def __init__(self, program: Program, images: np.ndarray, profile: str) -> None:
        self.program, self.graph, self.profile = program, program.graph, profile
        self.places = _single_values(self.graph)
        self.levels = self._measure(images)
        self.stage, self.least = cache(self._stage), cache(self._least)
        _ = program.integer_program(profile)  # refuses an unknown one

    def named(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of layers; ParameterError for one after which a cut is impossible."""
        known = {self.graph.nodes[i].name: i for i in self.places}
        wrong = next((name for name in names if name not in known), None)
        if wrong is not None:
            raise ParameterError(f"cuts: no cut after layer {wrong!r}; possible after {', '.join(known) or 'none'}")
        return tuple(sorted({known[name] for name in names}))

    def best(self, max_limbs: int | None) -> tuple[int, ...]:
        """Fewest cuts with all stages within the limit, then the least cost."""
        counts = (1,) if max_limbs is None else range(len(self.places) + 1)
        end = len(self.graph.nodes) - 1
        for count in counts:
            found = self.least(0, end, count, max_limbs)
            if found is not None:
                if not found[1] and max_limbs is not None:
                    raise ParameterError(f"max_limbs = {max_limbs}: the program fits without a cut")
                return found[1]
        raise ParameterError(
            f"max_limbs = {max_limbs}: no cuts keep every stage within it; raise it, or use coarser scales"
            if max_limbs is not None
            else "cuts: there is no value after which a cut is possible"
        )

    def _least(self, start: int, end: int, count: int, max_limbs: int | None) -> tuple[float, tuple[int, ...]] | None:
        """(cost, cuts) of the values after ``start`` with exactly ``count`` cuts; None if there is no way."""
        if count == 0:
            cost = self._cost(start, end, max_limbs)
            return None if cost is None else (cost, ())
        best: tuple[float, tuple[int, ...]] | None = None
        for place in (p for p in self.places if p > start):
            head = self._cost(start, place, max_limbs)
            tail = None if head is None else self.least(place, end, count - 1, max_limbs)
            if head is not None and tail is not None and (best is None or head + tail[0] < best[0]):
                best = (head + tail[0], (place, *tail[1]))
        return best

    def _cost(self, start: int, end: int, max_limbs: int | None) -> float | None:
        try:
            stage = self.stage(start, end)
        except ParameterError:  # orders beyond any use
            return None
        plan, certificate = stage.integer_program(self.profile), stage.certificate(self.profile)
        cost = cost_of(plan, certificate, stage.settings.modulus_bits, 1, public_key=False)
        if max_limbs is not None and cost.limbs > max_limbs:
            return None
        sent = math.prod(plan.input_shape) + math.prod(plan.output_shape)
        return float(cost.limbs * (cost.macs + sent))

    def staged(self, cuts: tuple[int, ...]) -> StagedProgram:
        ends = (0, *cuts, len(self.graph.nodes) - 1)
        stages = tuple(self.stage(a, b) for a, b in itertools.pairwise(ends))
        names = tuple(self.graph.nodes[i].name for i in cuts)
        return StagedProgram(stages, tuple(self.levels[i] for i in cuts), names)

    def _stage(self, start: int, end: int) -> Program:
        """The program that computes value ``end`` from value ``start``."""
        graph = _between(self.graph, start, end)
        settings = self.program.settings
        if settings.weight_bits is not None:
            paying = scaled_constants(graph)
            settings = replace(
                settings, weight_bits=tuple((n, b) for n, b in settings.weight_bits if n in paying), letter=None
            )
        if start:
            levels = self.levels[start]
            settings = replace(settings, mean=levels.mean, std=levels.std)
            if settings.weight_bits is not None:
                settings = replace(settings, scale_bits=_scale_bits(levels))
        if end < len(self.graph.nodes) - 1:
            settings = replace(settings, labels=tuple(f"value {i}" for i in range(graph.output_shape[0])))
        return Program(graph, settings)

    def _measure(self, images: np.ndarray) -> dict[int, Levels]:
        """Levels at every possible cut, from the float graph on the calibration images."""
        settings = self.program.settings
        mean, std = (np.array(v)[:, None, None] for v in (settings.mean, settings.std))
        found: dict[int, Levels] = {}
        for place in self.places:
            part = _between(self.graph, 0, place)
            ends: list[tuple[np.ndarray, np.ndarray]] = []
            shape = _as_map(self.graph.shapes[place])
            for first in range(0, len(images), _BATCH):
                values = evaluate_floats(part, (images[first : first + _BATCH] / 255 - mean) / std)
                rows = values.reshape(len(values), shape[0], -1)
                ends.append((rows.min(axis=(0, 2)), rows.max(axis=(0, 2))))
            low, high = np.min([e[0] for e in ends], axis=0), np.max([e[1] for e in ends], axis=0)
            found[place] = _levels(shape, low, high)
        return found


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
