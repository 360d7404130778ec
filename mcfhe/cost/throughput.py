"""How fast this device runs each kind of step: a model of two numbers a kind, measured in well under a second.

A step of kind k costs alpha_k for each value that it produces and beta_k for each term of that value (a tap, a
product), and a fixed time for each launch. Two probes a kind give alpha and beta. Probes run through the engine, on one
thread (tiles are independent, so threads divide the time) and at the stream width of the tile that is to be predicted,
because vectors are only full from some width on. Nothing of the network that is predicted is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod

import numpy as np
import torch

from mcfhe.arguments import torch_device
from mcfhe.engine import Engine
from mcfhe.graph.order import Order
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
)

_REPEATS = 7
_MODULUS = 1073741789  # of 30 bits
_ORDER = Order(0, 0)
_SIDE = 12  # of the probes' maps
_MAX_PROBE_STREAMS = 256

_PROBE_RESIDUES = 512  # limbs x streams, at least
_WEIGHTS = {"small": 1, "medium": 1 << 13, "large": 1 << 27}  # of probes of each of the paths that _path names


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds for each residue produced, and for each term of it."""

    value: float
    term: float

    def seconds(self, values: float, terms: float) -> float:
        return values * (self.value + self.term * terms)


@dataclass(frozen=True, slots=True)
class Work:
    """What a step does for one limb and one stream."""

    kind: str
    values: int
    terms: int


def work_of(step: Step) -> Iterable[Work]:
    """The work of a step; a reshape has none."""
    values = prod(step.shape)
    match step:
        case Conv2dStep() | LinearStep():
            name = "conv2d" if isinstance(step, Conv2dStep) else "linear"
            yield Work(f"{name} {_path(step.weight)}", values, prod(step.weight.shape[1:]))
        case PoolStep():
            yield Work("sum_pool2d", values, prod(step.kernel))
        case PolyStep():
            rows = step.coefficients
            square = all(row == (0, 0, 1) for row in rows)
            yield Work("poly", values, 1 if square else 2 * (len(rows[0]) - 1))
        case AddStep():
            yield Work("add", values, 1 + sum(factor != 1 for factor in step.factors))
        case ConcatStep():
            yield Work("add", values, 1)


def seconds_of(program: IntegerProgram, limbs: int, stream: int, device: torch.device | str = "cpu") -> float:
    """Predicted seconds of ``Engine.run`` for residues of ``limbs`` limbs and ``stream`` streams."""
    engine = Engine(program, torch_device(device))
    if engine.device.type == "cpu":
        tile_limbs, streams = engine.tile(limbs, stream)
    else:
        tile_limbs, streams = limbs, stream
    tiles = -(-limbs // tile_limbs) * -(-stream // streams)
    rates = partial(rate, device=str(engine.device), streams=width(streams))
    residues = limbs * stream
    moved = prod(program.input_shape) + prod(program.output_shape)
    total = rates("copy").seconds(moved * residues, 0)
    total += rates("launch").value * tiles * len(program.steps)
    for step in program.steps:
        for work in work_of(step):
            total += rates(work.kind).seconds(work.values * residues, work.terms)
    return total / (min(torch.get_num_threads(), tiles) if engine.device.type == "cpu" else 1)


@cache
def rate(kind: str, device: str, streams: int) -> Rate:
    """The rate of one kind, measured at the first call and kept for the life of the process.

    Kinds are those of :func:`work_of`, "copy" (residues in and out) and "launch" (of one step on one tile). The least
    of several runs counts: other work on the machine makes the others longer.
    """
    probes = _Probes(torch.device(device), streams, 0.0)
    if kind == "copy":
        return Rate(probes.copy(), 0.0)
    if kind == "launch":
        return Rate(probes.launch(), 0.0)
    probes = replace(probes, copied=rate("copy", device, streams).value)
    match kind.split():
        case ["conv2d", path]:
            return probes.pair(*(_conv(channels, _WEIGHTS[path]) for channels in (1, 8)))
        case ["linear", path]:
            return probes.pair(*(_linear(inputs, _WEIGHTS[path]) for inputs in (64, 512)))
        case ["sum_pool2d"]:
            return probes.chains(_pool(1), _pool(3))
        case ["poly"]:
            return probes.chains(_poly((0, 0, 1)), _poly((5, 3, 7)))
        case ["add"]:
            return probes.chains(_add((1, 1)), _add((3, 5)))
    raise ValueError(f"no probe for {kind!r}")


def forget() -> None:
    """Measure again at the next prediction."""
    rate.cache_clear()


def width(streams: int) -> int:
    """Stream widths that are measured: powers of two, 4 to 256."""
    return max(4, min(_MAX_PROBE_STREAMS, 1 << (streams - 1).bit_length()))


def _path(weight: np.ndarray) -> str:
    """Which arithmetic the weights lead to, as csrc/cpu/conv_plan.cpp chooses it for moduli of 31 bits."""
    magnitude = np.abs(weight).reshape(len(weight), -1)
    largest, total = int(magnitude.max()), int(magnitude.sum(axis=1).max())
    if largest < 1 << 15 and total < 1 << 16:
        return "small"
    return "medium" if total <= 1 << 22 else "large"


@dataclass(frozen=True, slots=True)
class _Probes:
    device: torch.device
    streams: int
    copied: float  # seconds for each residue that goes in or out

    def pair(self, first: IntegerProgram, second: IntegerProgram) -> Rate:
        """alpha and beta of the last step of two programs that differ in its terms."""
        times = []
        for program in (first, second):
            (work,) = work_of(program.steps[-1])
            moved = prod(program.input_shape) + prod(program.output_shape)
            seconds = max(self.run(program) - moved * self.copied, 0.0)
            times.append((seconds / work.values, work.terms))
        return _line(*times)

    def chains(self, first: Step, second: Step) -> Rate:
        """The same for steps that keep their input's shape and are so fast that copies would hide them."""
        times = []
        for step in (first, second):
            (work,) = work_of(step)
            times.append((self.step(step, self.run) / work.values, work.terms))
        return _line(*times)

    @staticmethod
    def step(step: Step, run: Callable[[IntegerProgram], float], length: int = 5) -> float:
        """What one more such step costs, by the difference of a chain of ``length`` and one alone."""
        shape = (step.shape[0], step.shape[1], step.shape[2])
        chain = tuple(replace(step, inputs=(i,) * len(step.inputs)) for i in range(length))
        longer, one = (run(_program(chain[:count], shape)) for count in (length, 1))
        return max(longer - one, 0.0) / (length - 1)

    def run(self, program: IntegerProgram) -> float:
        """Seconds for each limb and stream."""
        limbs = max(2, _PROBE_RESIDUES // self.streams)
        return self.whole(program, limbs, self.streams) / (limbs * self.streams)

    def whole(self, program: IntegerProgram, limbs: int, streams: int) -> float:
        """Seconds of one run."""
        engine = Engine(program, self.device)
        binding = engine.bind([_MODULUS] * limbs)
        x = torch.full((limbs, *program.input_shape, streams), 12345, dtype=torch.int64, device=self.device)

        def run() -> None:
            engine.run(binding, x)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return least(run)

    def copy(self) -> float:
        shape = (4, _SIDE, _SIDE)
        flatten = FlattenStep(name="probe", inputs=(0,), shape=(prod(shape),), order=_ORDER)
        return self.run(_program((flatten,), shape)) / (2 * prod(shape))

    def launch(self) -> float:
        """Seconds of a step that has next to nothing to do."""
        return self.step(_poly((0, 0, 1), (1, 1, 1)), lambda program: self.whole(program, 1, 1), 33)


def _line(low: tuple[float, int], high: tuple[float, int]) -> Rate:
    """Through two points (seconds a value, terms); both numbers at least 0."""
    term = max((high[0] - low[0]) / (high[1] - low[1]), 0.0)
    return Rate(max(low[0] - term * low[1], 0.0), term)


def least(run: Callable[[], object]) -> float:
    """Seconds of the shortest of several runs on one thread."""
    times = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])


def _program(steps: tuple[Step, ...], shape: tuple[int, int, int]) -> IntegerProgram:
    return IntegerProgram(steps=steps, input_shape=shape, input_order=_ORDER)


def _conv(channels: int, weight: int) -> IntegerProgram:
    step = Conv2dStep(
        name="probe",
        inputs=(0,),
        shape=(8, _SIDE, _SIDE),
        order=_ORDER,
        weight=np.full((8, channels, 5, 5), weight, np.int64),
        bias=(1,) * 8,
        stride=(1, 1),
        padding=(2, 2),
        dilation=(1, 1),
        groups=1,
    )
    return _program((step,), (channels, _SIDE, _SIDE))


def _linear(inputs: int, weight: int) -> IntegerProgram:
    matrix = np.full((64, inputs), weight, np.int64)
    flatten = FlattenStep(name="flat", inputs=(0,), shape=(inputs,), order=_ORDER)
    step = LinearStep(name="probe", inputs=(1,), shape=(64,), order=_ORDER, weight=matrix, bias=(1,) * 64)
    return _program((flatten, step), (inputs, 1, 1))


def _pool(kernel: int) -> PoolStep:
    return PoolStep(
        name="probe",
        inputs=(0,),
        shape=(8, _SIDE, _SIDE),
        order=_ORDER,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        factor=1,
    )


def _poly(row: tuple[int, ...], shape: tuple[int, int, int] = (8, _SIDE, _SIDE)) -> PolyStep:
    return PolyStep(name="probe", inputs=(0,), shape=shape, order=_ORDER, coefficients=(row,))


def _add(factors: tuple[int, int]) -> AddStep:
    return AddStep(name="probe", inputs=(0, 0), shape=(8, _SIDE, _SIDE), order=_ORDER, factors=factors)
