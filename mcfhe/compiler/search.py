"""``scale_bits="auto"``: the scales with the fewest limbs under which the integers still agree with the float model.

Rounding a weight to s bits adds noise to the scores whose power falls by 4 with every bit, and every bit costs as many
bits of the moduli as the layer's activations were squared since: 16 for the input of a three-activation network in the
patent profile, 1 for its last layer. So:

1. start from scales so fine that every label is the float model's;
2. measure for every layer the noise of its rounding alone, and what a bit of it costs;
3. noise powers P_i 4**-s_i of least total cost sum c_i s_i are in proportion to c_i (Lagrange): one number, the level,
   gives all scales, and bisection finds the coarsest level that agrees;
4. from there greedily: lower one scale, or lower one and raise a cheaper one, the largest saving first, as long as the
   labels agree and the noise stays what the level allows. Without that second condition a hundred trials would find
   scales that agree by luck on these images and not on others;
5. what is left of the last limb goes to the scales that gain most from it.

Agreement is that of the exact integer network (``Program.plain_scores``) on the calibration images. What was tried is
kept, and the letter of the patent is searched under the same condition, so that the comparison is one at equal
agreement, certificate, guard and input order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mcfhe.arguments import number
from mcfhe.errors import ParameterError
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.nodes import Graph
from mcfhe.graph.report import limbs_needed
from mcfhe.graph.settings import Settings
from mcfhe.modular.constants import branch_bits, relative_bits, scaled_constants, without_common_factors
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE

#: The scale of the input among the scales of layers, none of which has an empty name.
INPUT = ""
_BATCH = 250  # images between two looks at the number of mistakes
_FINE_INPUT, _FINE_WEIGHTS = 10, 12
_PROBE = 4  # bits that a scale is lowered by to measure its noise
_LETTER_SCALES = range(2, 17)

Scales = dict[str, int]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of scales. ``mistakes`` are of the first ``images`` images; a trial ends when there are too many."""

    input_bits: int
    weight_bits: tuple[tuple[str, int], ...]  # empty for the letter, which has the input's scale everywhere
    required_bits: int
    limbs: int
    images: int
    mistakes: int
    accepted: bool


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search tried and found.

    Attributes:
        trials: in the order in which they were made.
        chosen: the one that was taken; it is accepted and has been evaluated on all images.
        letter: the cheapest accepted trial by the letter, None if none of its scales agrees.
        images: calibration images.
        allowed: mistakes allowed on them.
        counted: what a mistake is, in words.
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    letter: Trial | None
    images: int
    allowed: int
    counted: str

    def __str__(self) -> str:
        """A table of the trials in their order."""
        names = [name for name, _ in self.chosen.weight_bits]
        rows = [("input", *names, "bits", "limbs", "mistakes", "images", "")]
        for trial in self.trials:
            bits = [str(dict(trial.weight_bits).get(name, trial.input_bits)) for name in names]
            verdict = "taken" if trial is self.chosen else "agrees" if trial.accepted else "no"
            if not trial.weight_bits:
                verdict += ", by the letter"
            numbers = (trial.required_bits, trial.limbs, trial.mistakes, trial.images)
            rows.append((str(trial.input_bits), *bits, *(str(n) for n in numbers), verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([f"{self.images} images, {self.allowed} mistakes allowed ({self.counted})", *lines])


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images, and which labels a program may miss how often.

    Attributes:
        images: uint8 ``[n, C, H, W]``.
        expected: int64 ``[n]``, the label that each must get: the true one, or that of the float model.
        allowed: how many of them may get another one.
        counted: what ``expected`` is, in words.
        floats: float64 ``[n, labels]``, the float model's scores.
    """

    images: np.ndarray
    expected: np.ndarray
    allowed: int
    counted: str
    floats: np.ndarray

    @staticmethod
    def of(
        graph: Graph, settings: Settings, images: np.ndarray, labels: np.ndarray | None, tolerance: float
    ) -> Calibration:
        """``tolerance`` is the share of images: of accuracy that may be lost, or without labels of agreement."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != graph.input_shape or not len(images):
            raise ParameterError(
                f"calibration: {images.dtype} of shape {images.shape}; give at least one image, uint8 "
                f"[batch, {str(graph.input_shape)[1:-1]}]"
            )
        if not number("tolerance", tolerance) < 1 or tolerance < 0:
            raise ParameterError(f"tolerance = {tolerance} is not in 0..1, below 1")
        mean, std = (np.array(v)[:, None, None] for v in (settings.mean, settings.std))
        batches = range(0, len(images), _BATCH)
        floats = np.concatenate([evaluate_floats(graph, (images[i : i + _BATCH] / 255 - mean) / std) for i in batches])
        allowed = math.floor(tolerance * len(images) + 1e-9)
        predicted = floats.argmax(axis=1)
        if labels is None:
            return Calibration(images, predicted, allowed, "labels other than the float model's", floats)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ParameterError(f"calibration_labels: shape {labels.shape}; give one whole number for each image")
        if labels.min() < 0 or labels.max() >= floats.shape[1]:
            raise ParameterError(
                f"calibration_labels: {labels.min()}..{labels.max()}, the network has scores 0..{floats.shape[1] - 1}"
            )
        wrong = int((predicted != labels).sum())
        return Calibration(images, labels, wrong + allowed, f"wrong labels, {wrong} by the float model", floats)

    def judge(self, program: Program) -> tuple[int, int, float]:
        """(images looked at, mistakes on them, mean squared error of their scores); stops at too many mistakes."""
        mistakes, squares, seen = 0, 0.0, 0
        while seen < len(self.images) and mistakes <= self.allowed:
            part = slice(seen, seen + _BATCH)
            scores = program.evaluate_plain(self.images[part]).numpy()
            mistakes += int((scores.argmax(axis=1) != self.expected[part]).sum())
            squares += float(((scores - self.floats[part]) ** 2).mean()) * len(scores)
            seen += len(scores)
        return seen, mistakes, squares / seen


class Search:
    """The steps above for one graph.

    Args:
        graph: after the passes.
        settings: all but the scales.
        plain: the graph by the letter, to compare with.
        calibration: when a program agrees.
        fixed: scales of layers that are not searched.
        report: called with a line of text at every trial.
        profile: whose limbs are counted.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Settings,
        plain: Graph,
        calibration: Calibration,
        fixed: Mapping[str, int],
        report: Report = lambda line: None,
        profile: str = DEFAULT_PROFILE,
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.plain = plain
        self.calibration = calibration
        self.fixed = dict(fixed)
        self.report = report
        self.profile = profile
        self._known: dict[tuple[tuple[str, int], ...], tuple[Trial, float]] = {}
        self._trials: list[Trial] = []

    def run(self, letter: tuple[str, ...]) -> SearchResult:
        """``letter``: names of the letter's passes. ParameterError if not even the finest scales agree."""
        fine = self.fine
        if not self.accepts(fine):
            raise ParameterError(
                f"scale_bits: no scales agree with the float model, not even {_FINE_INPUT} bits of input and "
                f"{_FINE_WEIGHTS} of weights, on {len(self.calibration.images)} images with "
                f"{self.calibration.allowed} mistakes allowed; raise the tolerance, or train to larger margins"
            )
        best = self._spend(self._descend(self._by_level()))
        return SearchResult(
            trials=tuple(self._trials),
            chosen=self.trial(best),
            letter=self._letter(letter),
            images=len(self.calibration.images),
            allowed=self.calibration.allowed,
            counted=self.calibration.counted,
        )

    @cached_property
    def fine(self) -> Scales:
        """Where the search starts."""
        searched = {n: b for n, b in relative_bits(self.graph, _FINE_WEIGHTS).items() if n not in self.fixed}
        return {INPUT: _FINE_INPUT, **searched}

    def settings_of(self, scales: Scales) -> Settings:
        """The settings of a choice; INPUT stands for the input."""
        layers = {name: scales.get(name, self.fixed.get(name, 0)) for name in scaled_constants(self.graph)}
        lean = branch_bits(self.graph, scales[INPUT], without_common_factors(self.graph, layers), self.fixed)
        return replace(self.settings, scale_bits=scales[INPUT], weight_bits=tuple(sorted(lean.items())))

    def trial(self, scales: Scales) -> Trial:
        return self._try(scales)[0]

    def accepts(self, scales: Scales) -> bool:
        return self.trial(scales).accepted

    def _try(self, scales: Scales) -> tuple[Trial, float]:
        key = tuple(sorted(scales.items()))
        if key not in self._known:
            self._known[key] = self._judge(self.graph, self.settings_of(scales))
        return self._known[key]

    def _judge(self, graph: Graph, settings: Settings) -> tuple[Trial, float]:
        try:
            program = Program(graph, settings)
            required = program.certificate(self.profile)
            seen, mistakes, error = self.calibration.judge(program)
        except ParameterError:
            return Trial(settings.scale_bits, settings.weight_bits or (), 0, 0, 0, 0, False), math.inf
        trial = Trial(
            input_bits=settings.scale_bits,
            weight_bits=settings.weight_bits or (),
            required_bits=required.required_bits,
            limbs=limbs_needed(required.required_product, settings.modulus_bits),
            images=seen,
            mistakes=mistakes,
            accepted=mistakes <= self.calibration.allowed and seen == len(self.calibration.images),
        )
        self._trials.append(trial)
        self.report(f"{len(self._trials)} tried, {trial.limbs} limbs: {'agrees' if trial.accepted else 'does not'}")
        return trial, error

    def _required(self, scales: Scales) -> int:
        """Least product of the moduli, without looking at any image; 0 for scales out of any range."""
        try:
            return Program(self.graph, self.settings_of(scales)).certificate(self.profile).required_product
        except ParameterError:  # weights of 2**31, pools that give only zeros
            return 0

    def _noise(self, scales: Scales) -> float:
        """Noise power of a choice as the powers predict it: independent contributions add."""
        return sum(power * 4.0 ** -scales[name] for name, power in self.powers.items())

    @cached_property
    def costs(self) -> dict[str, float]:
        """Bits of the moduli that one bit of each scale costs; at least a little, so that none is free."""
        fine = math.log2(self._required(self.fine))
        costs = {}
        for name, bits in self.fine.items():
            lower = self._required(self.fine | {name: max(1, bits - 2)})
            costs[name] = max(0.25, (fine - math.log2(lower)) / 2) if lower else 0.25
        return costs

    @cached_property
    def powers(self) -> dict[str, float]:
        """P_i: noise power of each scale at no bits, extrapolated from _PROBE bits below the finest."""
        powers = {}
        for name, bits in self.fine.items():
            probe = max(1, bits - _PROBE)
            error = self._try(self.fine | {name: probe})[1]
            powers[name] = max(error, 1e-30) * 4.0**probe
        return powers

    def _at_level(self, level: float) -> Scales:
        """Scales with noise powers of 4**-level times their costs, never above the finest."""
        scales = {}
        for name, finest in self.fine.items():
            bits = round(0.5 * math.log2(self.powers[name] / self.costs[name]) + level)
            scales[name] = min(max(bits, 1 if name == INPUT else 0), finest)
        return scales

    def _by_level(self) -> Scales:
        """The coarsest level that agrees, in steps of a quarter of a bit; agreement is taken to be monotone."""
        levels = [0.5 * math.log2(self.powers[name] / self.costs[name]) for name in self.fine]
        low = 4 * math.floor(-max(levels))  # all scales at their least, in quarters
        high = low + 4 * math.ceil(max(self.fine.values()) + max(levels) - min(levels)) + 4
        while high - low > 1:
            middle = (low + high) // 2
            if self.accepts(self._at_level(middle / 4)):
                high = middle
            else:
                low = middle
        best = self._at_level(high / 4)
        return best if self.accepts(best) else self.fine

    def _descend(self, best: Scales) -> Scales:
        allowed = self._noise(best) * (1 + 1e-9)
        while True:
            product = self._required(best)
            moves = [(self._required(move), move) for move in self._moves(best) if self._noise(move) <= allowed]
            cheaper = sorted(((p, m) for p, m in moves if 0 < p < product), key=lambda pair: pair[0])
            better = next((move for _, move in cheaper if self.accepts(move)), None)
            if better is None:
                return best
            best = better

    def _moves(self, scales: Scales) -> Iterator[Scales]:
        """One scale lower by a bit, and in exchange perhaps a cheaper one higher by a bit."""
        for name, bits in scales.items():
            if bits <= (1 if name == INPUT else 0):
                continue
            lower = scales | {name: bits - 1}
            yield lower
            for other, more in scales.items():
                if other != name and self.costs[other] < self.costs[name] and more < self.fine[other]:
                    yield lower | {other: more + 1}

    def _spend(self, best: Scales) -> Scales:
        """Raise scales while the limbs stay, most noise removed first; taken only if it agrees no worse."""
        limbs, scales = self.trial(best).limbs, best
        while True:
            gains = sorted(self.fine, key=lambda n: self.powers[n] * 4.0 ** -scales[n], reverse=True)
            higher = (scales | {name: scales[name] + 1} for name in gains if scales[name] < self.fine[name])
            width = self.settings.modulus_bits
            fitting = next((s for s in higher if limbs_needed(self._required(s), width) <= limbs), None)
            if fitting is None:
                break
            scales = fitting
        trial = self.trial(scales)
        return scales if trial.accepted and trial.mistakes <= self.trial(best).mistakes else best

    def _letter(self, passes: tuple[str, ...]) -> Trial | None:
        """The letter with the smallest scale that agrees; by bisection, as agreement is nearly monotone."""
        low, high, found = _LETTER_SCALES.start, _LETTER_SCALES.stop, None
        while low < high:
            middle = (low + high) // 2
            settings = replace(self.settings, scale_bits=middle, passes=passes, weight_bits=None, letter=None)
            trial = self._judge(self.plain, settings)[0]
            if trial.accepted:
                high, found = middle, trial
            else:
                low = middle + 1
        return found
