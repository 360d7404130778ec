"""The compiled network: what a server evaluates, what a client is told about it, and the file it is kept in."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mcfhe import container
from mcfhe.arguments import whole
from mcfhe.errors import FormatError, ImageError, ParameterError
from mcfhe.graph.certificate import Certificate, certify
from mcfhe.graph.compiled import check_ends
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import Graph
from mcfhe.graph.plain import PlainScores, evaluate_plain
from mcfhe.graph.report import summarise
from mcfhe.graph.settings import Settings
from mcfhe.graph.steps import IntegerProgram
from mcfhe.graph.storage import KIND, STAGED_KIND, Scales, StoredProgram, decode_graph, encode_graph, identity
from mcfhe.modular.constants import rounding_notes
from mcfhe.modular.params import MAX_LIMBS
from mcfhe.modular.plan import constants_of, input_intervals, input_orders, lower, max_noise, quantise
from mcfhe.spec import DEFAULT_PROFILE, PROFILES, ClientSpec, ProfileSpec

if TYPE_CHECKING:
    from mcfhe.compiler.search import SearchResult
    from mcfhe.cost.card import CostCard

__all__ = ["Program", "load_program"]

_VERSION = 2  # of the content with a scale for every layer; by the letter it has no version field and is the first
_MAX_HEADER = 1 << 22
_MAX_FILE = 1 << 32
_TENSORS = {"node.*": container.TensorField("U8", ((1, 1 << 31), (1, 8)))}


def load_program(path: str | os.PathLike[str]) -> Any:
    """The program, of whichever scheme, whole or staged, that its ``save`` wrote.

    FormatError for anything else; nothing in the file is executed.
    """
    data = container.read_file(path, _MAX_FILE)
    with container.naming(path):
        if container.read_header(data, _MAX_HEADER).metadata.get("kind") == STAGED_KIND:
            from mcfhe.staged.program import StagedProgram

            return StagedProgram.from_bytes(data)
        return Program.from_bytes(data)


class Program(StoredProgram):
    """A network as exact integer arithmetic. Immutable; two programs are equal when their ids are.

    Attributes:
        graph: the layers, constants rounded to the grids of their scales.
        settings: normalisation, scales, labels.
        search: what was tried, where the scales were searched just now; it is not kept in files.
    """

    scheme = "modular"
    search: SearchResult | None = None

    def __init__(self, graph: Graph, settings: Settings) -> None:
        """ParameterError if weights or orders do not fit the scale, or the graph's ends the settings."""
        check_ends(graph, settings)
        if extra := (settings.layer_bits or {}).keys() - {node.name for node in graph.nodes}:
            raise ParameterError(f"weight_bits: no layer {min(extra)!r}")
        self.graph = quantise(graph, settings.scale_bits, settings.layer_bits)
        self.settings = settings
        self.table = settings.table
        self._body, self._tensors = _encode(self.graph, settings)
        self.program_id = identity(self._body, self._tensors)
        self._integer_programs: dict[str, IntegerProgram] = {}
        self._certificates: dict[str, Certificate] = {}
        self._client_spec = self._make_client_spec()  # now, so that no program exists whose plan cannot be made

    @property
    def key_bytes(self) -> int:
        """Of an evaluation key with as many limbs as any may have, packed."""
        return 4 * MAX_LIMBS

    def integer_program(self, profile: str) -> IntegerProgram:
        """The steps with the orders and constants of one profile."""
        if profile not in PROFILES:
            raise ParameterError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
        if profile not in self._integer_programs:
            settings, order = self.settings, input_orders(self.settings.scale_bits)[profile]
            program = lower(self.graph, settings.scale_bits, settings.amplification, order, settings.layer_bits)
            self._integer_programs[profile] = program
        return self._integer_programs[profile]

    def certificate(self, profile: str) -> Certificate:
        """Bounds proved for every image and all noise of one profile, and what the moduli must hold."""
        program = self.integer_program(profile)  # refuses an unknown one
        if profile not in self._certificates:
            pairs = input_intervals(profile, self.table, self.settings.scale_bits, self.settings.amplification)
            self._certificates[profile] = certify(
                program, Intervals.of(pairs), self.settings.guard_bits, self.settings.bounds
            )
        return self._certificates[profile]

    def client_spec(self) -> ClientSpec:
        """What a client needs, without weights or layers."""
        return self._client_spec

    def _make_client_spec(self) -> ClientSpec:
        noise = max_noise(self.settings.amplification)
        profiles = {
            name: ProfileSpec(
                input_order=self.integer_program(name).input_order,
                output_order=self.integer_program(name).output_order,
                output_bound=self.certificate(name).output_bound,
                max_noise=noise,
            )
            for name in PROFILES
        }
        return ClientSpec(
            program_id=self.program_id,
            input_shape=self.input_shape,
            scale_bits=self.settings.scale_bits,
            amplification=self.settings.amplification,
            modulus_bits=self.settings.modulus_bits,
            guard_bits=self.settings.guard_bits,
            table=self.table,
            labels=self.labels,
            profiles=profiles,
        )

    def summary(self, profile: str = DEFAULT_PROFILE, lanes: int = 4) -> str:
        """A table of the layers (order, scale, bits, headroom, alignment) in one profile, and the cost of both."""
        _ = self.integer_program(profile)  # refuses an unknown one
        if whole("lanes", lanes) < 1:
            raise ParameterError(f"lanes = {lanes} must be 1 or more")
        return summarise(
            title=f"program {self.program_id[:16]}",
            profile=profile,
            plans={name: (self.integer_program(name), self.certificate(name)) for name in PROFILES},
            settings=self.settings,
            lanes=lanes,
            notes=rounding_notes(
                self.graph,
                constants_of(self.settings.scale_bits, self.settings.amplification, self.settings.layer_bits),
            ),
        )

    def cost(
        self,
        profile: str = DEFAULT_PROFILE,
        lanes: int = 4,
        images: int = 1,
        device: str = "cpu",
        *,
        timed: bool = True,
    ) -> CostCard:
        """What ``images`` images encrypted together will cost, before any is; ``str`` of it is the cost card.

        Times are predicted from a calibration of this device, well under a second at the first call; ``timed=False``
        leaves them out.
        """
        _ = self.integer_program(profile)  # refuses an unknown one
        for name, value in (("lanes", lanes), ("images", images)):
            if whole(name, value) < 1:
                raise ParameterError(f"{name} = {value} must be 1 or more")
        from mcfhe.cost.card import cost  # brings the engine, and for times the client

        return cost(self, profile, lanes, images, device, timed)

    def evaluate_integers(self, V: Any, profile: str) -> list[list[int]]:
        """The oracle: exact scores of the encrypted integers V ``[batch, C, H, W]``, on plain Python ints."""
        return evaluate_integers(self.integer_program(profile), V)

    def evaluate_plain(self, images: Any) -> Tensor:
        """Scores of uint8 ``[batch, C, H, W]`` without noise, float64 ``[batch, labels]``.

        Each score has a proved error bound; where the bound does not separate the best one, exact integers do. So
        ``argmax(1)`` is the label that a client without noise decrypts.
        """
        return self.plain_scores(images).scores

    def plain_scores(self, images: Any) -> PlainScores:
        """:meth:`evaluate_plain` with the error bounds, and which images needed exact integers."""
        # without noise all profiles stand for the same numbers; this one has the shorter integers
        amplification = self.settings.amplification
        return evaluate_plain(self.integer_program("hardened"), self._plain(images) * amplification, amplification)

    def _plain(self, images: Any) -> np.ndarray:
        """PT of every pixel, int64."""
        pixels, table = _check_images(images, self.input_shape), np.array(self.table, np.int64)
        found: np.ndarray = table[np.arange(len(table))[None, :, None, None], pixels]
        return found

    def exact_scores(self, images: Any) -> tuple[list[list[int]], int]:
        """Scores of uint8 ``[batch, C, H, W]`` without noise as integers, and what they are to be divided by."""
        program, amplification = self.integer_program("hardened"), self.settings.amplification
        V = self._plain(images).astype(object) * amplification
        return evaluate_integers(program, V), program.output_order.denominator(amplification)

    @staticmethod
    def from_bytes(data: bytes) -> Any:
        """The inverse of :meth:`to_bytes`, and that of a lattice program; FormatError for anything else."""
        content = container.unpack(data, KIND, _TENSORS, ("program_id", "program"), max_header=_MAX_HEADER)
        try:
            body = json.loads(content.metadata["program"])
        except (ValueError, RecursionError):
            raise FormatError("program: field 'program' is not valid JSON") from None
        if isinstance(body, dict) and body.get("scheme") == "lattice":
            from mcfhe.lattice.program import LatticeProgram

            return LatticeProgram.from_content(body, content.tensors, content.metadata["program_id"])
        by_the_letter = not (isinstance(body, dict) and "version" in body)
        if not isinstance(body, dict) or set(body) - {"version"} != {"nodes", "settings"}:
            raise FormatError("program: field 'program' does not hold nodes and settings")
        if not by_the_letter and (type(body["version"]) is not int or body["version"] != _VERSION):
            raise FormatError(f"program: content version {body['version']!r}, this build reads 1 and {_VERSION}")
        settings = Settings.from_json(body["settings"], by_the_letter)
        graph = decode_graph(body["nodes"], content.tensors, _scales(settings))
        try:
            program = Program(graph, settings)
        except ParameterError as error:
            raise FormatError(f"program: {error}") from None
        if program.program_id != content.metadata["program_id"]:
            raise FormatError("program: field 'program_id' is not that of the content; save the program again")
        return program

    def __repr__(self) -> str:
        return (
            f"Program({self.program_id[:16]}, input {self.input_shape}, {len(self.graph.nodes) - 1} layers, "
            f"{len(self.labels)} labels)"
        )


def _scales(settings: Settings) -> Scales:
    return settings.scale_bits if settings.layer_bits is None else settings.layer_bits


def _encode(graph: Graph, settings: Settings) -> tuple[str, dict[str, np.ndarray]]:
    """Canonical JSON (keys sorted, no spaces) and tensors."""
    nodes, tensors = encode_graph(graph, _scales(settings))
    body: dict[str, Any] = {"nodes": nodes, "settings": settings.to_json()}
    if settings.weight_bits is not None:
        body["version"] = _VERSION
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False), tensors


def _check_images(images: Any, input_shape: tuple[int, int, int]) -> np.ndarray:
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8:
        raise ImageError(f"images: dtype {array.dtype}; give the pixels as uint8, 0..255")
    if array.ndim != 4 or array.shape[1:] != input_shape:
        raise ImageError(f"images: shape {array.shape}, the program takes [batch, {str(input_shape)[1:-1]}]")
    return array
