"""The compiled network over a lattice: the same graph and settings as any program, and a plan of ring and levels."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import cached_property
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mcfhe.arguments import torch_device, whole
from mcfhe.errors import DepthError, FormatError, ParameterError
from mcfhe.graph.certificate import Certificate, certify
from mcfhe.graph.compiled import check_ends
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import Graph, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.plain import PlainScores, evaluate_plain
from mcfhe.graph.settings import Settings
from mcfhe.graph.steps import IntegerProgram
from mcfhe.graph.storage import StoredProgram, decode_graph, encode_graph, identity
from mcfhe.images import check_images
from mcfhe.lattice.lower import Placement, lower_lattice
from mcfhe.lattice.plan import Limits, Plan, make_plan
from mcfhe.lattice.report import summarise
from mcfhe.lattice.ring import MAX_PRIME_BITS
from mcfhe.lattice.search import MAX_LIMBS
from mcfhe.lattice.security import require_security
from mcfhe.lattice.simulate import LayerPrecision, predict_precision
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.modular.plan import lower, quantise

if TYPE_CHECKING:
    from mcfhe.cost.lattice_card import LatticeCostCard

SCHEME = "lattice"
# of the content; 1 and 2 are the modular scheme's, 3 aligned sums to other scales, 4 had primes of one width
_VERSION = 5
_BEYOND = 2.0**20  # bits of a value that no ring holds
_SLACK = 1.5  # bits by which a plan may miss its margin: its primes are no powers of two


class LatticeProgram(StoredProgram):
    """A network over RNS-CKKS ciphertexts. Immutable; two programs are equal when their ids are.

    Attributes:
        graph: the layers, weights rounded to the grids of their scales.
        settings: normalisation, scales, labels.
        plan: ring degree, limbs, scales, rescalings.
    """

    scheme = SCHEME

    def __init__(self, graph: Graph, settings: Settings, plan: Plan) -> None:
        """ParameterError if the plan does not hold for this graph: too few bits, or outside the 128-bit table."""
        if settings.layer_bits is None or settings.amplification != 1:
            raise ParameterError("lattice program: every layer has a scale of its own, and there is no amplification")
        check_ends(graph, settings)
        self.settings = settings
        self.layer_bits = settings.layer_bits
        self.graph = quantise(graph, settings.scale_bits, self.layer_bits)
        self.plan = plan
        self.table = settings.table
        ring = plan.ring
        require_security(ring.degree, (*ring.moduli, ring.special))
        self._program = lower_lattice(
            self.graph, self.layer_bits, ring, Fraction(1 << plan.input_bits), dict(plan.placements)
        )
        if self._program.levels[-1].components != 2:
            raise ParameterError("lattice plan: scores of three components; relinearise after the last square")
        self._check_room()
        nodes, self._tensors = encode_graph(self.graph, self.layer_bits)
        content = {
            "version": _VERSION,
            "scheme": SCHEME,
            "nodes": nodes,
            "settings": settings.to_json(),
            "plan": _plan_to_json(plan),
        }
        self._body = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        self.program_id = identity(self._body, self._tensors)

    @staticmethod
    def planned(
        graph: Graph,
        settings: Settings,
        precision: float,
        degree: int | None = None,
        limits: Limits | None = None,
        explain: bool = True,
    ) -> LatticeProgram:
        """The program with the best plan, see :func:`mcfhe.lattice.plan.make_plan`. DepthError if there is none within
        the 128-bit table."""
        layer_bits = settings.layer_bits
        assert layer_bits is not None
        quantised = quantise(graph, settings.scale_bits, layer_bits)
        bounds = _bounds_as_far_as_known(quantised, settings)
        plan = make_plan(quantised, layer_bits, bounds, precision, degree, limits, explain)
        return LatticeProgram(graph, settings, plan)

    def _check_room(self) -> None:
        """Every value fits its modulus with room for noise, at the scales that the primes really give."""
        bounds = self.value_bounds
        moduli = self.plan.ring.moduli
        for index, (level, bound) in enumerate(zip(self._program.levels, bounds, strict=True)):
            room = sum(log2(q) for q in moduli[: level.limbs])
            if log2(level.scale) + bound + _SLACK / 2 > room:
                name = self._program.steps[index - 1].name if index else "input"
                raise ParameterError(
                    f"lattice plan: layer {name!r} needs {log2(level.scale) + bound:.1f} bits, its {level.limbs} limbs "
                    f"have {room:.1f}; plan again with this graph"
                )

    @property
    def slots(self) -> int:
        """Images that fit one request."""
        return self.plan.degree // 2

    @property
    def key_bytes(self) -> int:
        """Of a relinearisation key, packed."""
        digits = self.plan.limbs
        return 4 * digits * 2 * (digits + 1) * self.plan.degree

    def integer_program(self) -> IntegerProgram:
        """The steps, with a ring and levels."""
        return self._program

    @cached_property
    def exact_program(self) -> IntegerProgram:
        """The quantised network as exact integers: what the slots would hold without noise."""
        return _exact(self.graph, self.settings)

    @cached_property
    def value_bounds(self) -> list[float]:
        """log2 of the proved bound of the input and of every step's value, as real numbers."""
        nodes = node_bounds(self.exact_program, self.settings)
        by_name = {node.name: bound for node, bound in zip(self.graph.nodes, nodes, strict=True)}
        return [nodes[0], *(by_name[step.name] for step in self._program.steps)]

    @cached_property
    def _certificate(self) -> Certificate:
        return _certify(self.exact_program, self.settings)

    def certificate(self) -> Certificate:
        """Bounds proved for every image of what the slots hold, as exact integers; noise comes on top, see
        :meth:`predict_precision`. That all values fit their moduli is checked whenever a program is made."""
        return self._certificate

    def cost(
        self,
        profile: str | None = None,
        lanes: int | None = None,
        images: int = 1,
        device: str = "cpu",
        *,
        timed: bool = True,
    ) -> LatticeCostCard:
        """What one request with ``images`` images will cost, before any is encrypted; ``str`` of it is the cost card.

        Times are predicted for a CPU from probes of a second or two at the first call; ``timed=False`` leaves them out.
        ParameterError for a profile or lanes, which belong to the modular scheme, for more images than slots, and for
        times on another device.
        """
        for name, value in (("profile", profile), ("lanes", lanes)):
            if value is not None:
                raise ParameterError(f"{name} = {value!r}: belongs to the modular scheme; leave it out")
        if not 1 <= whole("images", images) <= self.slots:
            raise ParameterError(f"images = {images} is not in 1..{self.slots}, the slots of one request")
        if timed and torch_device(device).type != "cpu":
            raise ParameterError(f"device {device}: times are predicted for a CPU alone; pass timed=False")
        from mcfhe.cost.lattice_card import lattice_cost  # brings the engine, and for times SEAL

        return lattice_cost(self, images, timed)

    def client_spec(self) -> LatticeSpec:
        """What a client needs, without weights or layers."""
        level = self._program.levels[-1]
        return LatticeSpec(
            program_id=self.program_id,
            input_shape=self.input_shape,
            scale_bits=self.settings.scale_bits,
            table=self.table,
            labels=self.labels,
            ring=self.plan.ring,
            input_bits=self.plan.input_bits,
            output_limbs=level.limbs,
            output_scale=level.scale,
            output_bound_bits=max(0.0, self.value_bounds[-1]),  # noise may exceed a smaller one
        )

    def evaluate_plain(self, images: Any) -> Tensor:
        """Scores of uint8 ``[batch, C, H, W]`` without noise, float64 ``[batch, labels]``, each with a proved error."""
        return self.plain_scores(images).scores

    def plain_scores(self, images: Any) -> PlainScores:
        """:meth:`evaluate_plain` with the error bounds."""
        return evaluate_plain(self.exact_program, self._pixels(images), 1)

    def exact_scores(self, images: Any) -> tuple[list[list[int]], int]:
        """Scores of uint8 ``[batch, C, H, W]`` without noise as integers, and what they are to be divided by."""
        program = self.exact_program
        return evaluate_integers(program, self._pixels(images).astype(object)), program.output_order.denominator(1)

    def predict_precision(self, images: Any, seed: int = 0, *, public_key: bool = False) -> list[LayerPrecision]:
        """Noise to expect at every step, by simulation over uint8 images ``[batch, C, H, W]``: of requests encrypted
        under the secret key, or with ``public_key`` under a public one."""
        x = torch.from_numpy(self._pixels(images).astype(np.float64)) / self.settings_scale
        return predict_precision(self._program, x, seed, public_key=public_key)

    @property
    def settings_scale(self) -> float:
        """What the table's integers are divided by."""
        return 2.0**self.settings.scale_bits

    def _pixels(self, images: Any) -> np.ndarray:
        pixels = check_images(images, self.input_shape)
        table = np.array(self.table, np.int64)
        found: np.ndarray = table[np.arange(len(table))[None, :, None, None], pixels]
        return found

    def summary(self) -> str:
        """A table of the layers (level, scale, bits, room), what a request weighs and what an empty slot wastes."""
        return summarise(self)

    @staticmethod
    def from_content(body: dict[str, Any], tensors: dict[str, np.ndarray], program_id: str) -> LatticeProgram:
        """From what a program file holds; FormatError names what is wrong."""
        if set(body) != {"version", "scheme", "nodes", "settings", "plan"} or body["version"] != _VERSION:
            raise FormatError(f"program: not a lattice program of version {_VERSION}; compile the model again")
        settings = Settings.from_json(body["settings"], by_the_letter=False)
        layer_bits = settings.layer_bits
        if layer_bits is None:
            raise FormatError("program: settings field 'weight_bits' is missing")
        graph = decode_graph(body["nodes"], tensors, layer_bits)
        try:
            program = LatticeProgram(graph, settings, _plan_from_json(body["plan"]))
        except ParameterError as error:
            raise FormatError(f"program: {error}") from None
        if program.program_id != program_id:
            raise FormatError("program: field 'program_id' is not that of the content; save the program again")
        return program

    def __repr__(self) -> str:
        return (
            f"LatticeProgram({self.program_id[:16]}, input {self.input_shape}, {len(self.graph.nodes) - 1} layers, "
            f"{len(self.labels)} labels, n = {self.plan.degree}, {self.plan.limbs} limbs)"
        )


def _exact(graph: Graph, settings: Settings) -> IntegerProgram:
    return lower(graph, settings.scale_bits, 1, Order(0, settings.scale_bits), settings.layer_bits)


def _certify(program: IntegerProgram, settings: Settings) -> Certificate:
    # slots that hold no image hold zeros, and a wrap in one slot would damage all
    pairs = [(min(0, *row), max(0, *row)) for row in settings.table]
    return certify(program, Intervals.of(pairs), guard_bits=0)


def _bounds_as_far_as_known(graph: Graph, settings: Settings) -> list[float]:
    """:func:`node_bounds` of a graph; ``_BEYOND`` after activations so many that exact integers are too long."""
    ends = [len(graph.nodes), *(i for i, node in reversed(list(enumerate(graph.nodes))) if isinstance(node, Poly))]
    for end in ends:
        try:
            bounds = node_bounds(_exact(Graph(graph.nodes[:end]), settings), settings)
        except DepthError:
            continue
        return bounds + [_BEYOND] * (len(graph.nodes) - end)
    raise DepthError("program: the first activation is beyond the orders that are supported; use a smaller scale_bits")


def node_bounds(program: IntegerProgram, settings: Settings) -> list[float]:
    """log2 of the proved bound of every node's value as a real number, for an exact program of the graph."""
    orders = [program.input_order, *(step.order for step in program.steps)]
    layers = _certify(program, settings).layers
    return [log2(max(1, layer.intervals.bound)) - order.k for layer, order in zip(layers, orders, strict=True)]


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    return {
        "degree": plan.degree,
        "limbs": plan.limbs,
        "input_bits": plan.input_bits,
        "first_bits": plan.first_bits,
        "placements": [[index, p.rescales, p.limbs, int(p.relinearise)] for index, p in plan.placements],
    }


def _plan_from_json(body: Any) -> Plan:
    names = {"degree", "limbs", "input_bits", "first_bits", "placements"}
    if not isinstance(body, dict) or set(body) != names:
        raise FormatError(f"program: field 'plan' does not hold {', '.join(sorted(names))}")
    rows = body["placements"]
    numbers = [body["degree"], body["limbs"], body["input_bits"], body["first_bits"]]
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise FormatError("program: plan field 'placements' is not a list of four numbers each")
    if any(type(v) is not int or not 0 <= v < 1 << 20 for v in [*numbers, *(v for row in rows for v in row)]):
        raise FormatError("program: plan: whole numbers in range expected")
    if [row[0] for row in rows] != sorted({row[0] for row in rows}) or any(row[3] > 1 for row in rows):
        raise FormatError("program: plan field 'placements' is not in ascending order of layers, each once")
    if not 1 <= body["limbs"] <= MAX_LIMBS or not 1 <= body["input_bits"] <= 60 or any(row[2] < 1 for row in rows):
        raise FormatError(f"program: plan: limbs must be 1..{MAX_LIMBS}, input_bits 1..60")
    if not 2 <= body["first_bits"] <= MAX_PRIME_BITS:
        raise FormatError(f"program: plan: first_bits must be 2..{MAX_PRIME_BITS}")
    placements = tuple((row[0], Placement(row[1], row[2], bool(row[3]))) for row in rows)
    return Plan(body["degree"], body["limbs"], body["input_bits"], placements, body["first_bits"])
