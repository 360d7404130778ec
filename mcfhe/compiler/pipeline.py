"""From a module to a program: import, passes, scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from mcfhe.arguments import whole
from mcfhe.compiler.alternatives import WIDTHS, cheapest
from mcfhe.compiler.search import Calibration, Search
from mcfhe.compiler.shortfall import require_some_basis
from mcfhe.errors import ParameterError
from mcfhe.graph.import_ import check_shape, import_module
from mcfhe.graph.nodes import Graph
from mcfhe.graph.passes import apply_passes, select_passes
from mcfhe.graph.passes.sums_of_squares import NAME as SUMS_OF_SQUARES
from mcfhe.graph.settings import Letter, Numbers, Settings, per_channel, per_score
from mcfhe.modular.constants import (
    MAX_LAYER_BITS,
    branch_bits,
    relative_bits,
    scaled_constants,
    without_common_factors,
)
from mcfhe.modular.plan import quantise
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE, PROFILES
from mcfhe.staged.uncut import Uncut

__all__ = ["compile"]

_AUTO = "auto"
SCHEMES = ("modular", "lattice")
_ANY_SCALE = 8  # stands for the scale in settings until the search has found one


def compile(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
    scale_bits: int | str = 8,
    amplification_bits: int | str = 4,
    modulus_bits: int | str = 30,
    guard_bits: int = 32,
    labels: Sequence[str] | None = None,
    passes: str | Sequence[str] | None = None,
    weight_bits: Mapping[str, int] | None = None,
    calibration: Any = None,
    calibration_labels: Any = None,
    tolerance: float = 0.001,
    progress: bool = True,
    scheme: str = "modular",
    precision_bits: int = 12,
    degree: int | None = None,
    bounds: str = "interval",
    profile: str = DEFAULT_PROFILE,
    for_refresh: bool = False,
) -> Any:
    """A trained module as a program on encrypted images: a :class:`mcfhe.Program`, or a
    :class:`mcfhe.lattice.program.LatticeProgram` for ``scheme="lattice"``.

    Args:
        model: in eval mode, from normalised floats ``[batch, C, H, W]`` to scores ``[batch, labels]``.
        input_shape: (C, H, W) of one image.
        mean, std: a pixel u in 0..255 of channel c enters the network as (u / 255 - mean_c) / std_c; one number, or
            one a channel; std positive.
        scale_bits: log2 of the scale Delta, 1..30. More bits: closer to the float model, more limbs. "auto" searches
            the scales of the input and of every layer for the fewest limbs, see :mod:`mcfhe.compiler.search`; what was
            tried is then in ``program.search``.
        amplification_bits: log2 of the amplification a, 0..20. Noise is below a / 2. "auto" takes the most that costs
            no limb, 2 at least, see :mod:`mcfhe.compiler.alternatives`.
        modulus_bits: width of the primes that a client draws, 8..31. "auto" takes 30 or 31, whichever needs fewer.
        guard_bits: the moduli's product exceeds twice the largest proved output by this factor, 0..256.
        labels: a name for each score; "0", "1", ... by default.
        passes: graph passes to run: "letter" (the patent's own plan), "default" (all that save orders) or a list of
            names; None stands for "letter", and for "default" if the scales are searched.
        weight_bits: bits of scale by name of a layer, 0..48. With passes that fold, or with any bits given, every layer
            has a scale of its own; a layer that is not named gets the one under which its largest weight is
            2**scale_bits or just below, or the one that is found. By the letter all layers share ``scale_bits``.
        calibration: for "auto": uint8 ``[n, C, H, W]``, images like those to come but none that accuracy is later
            reported on.
        calibration_labels: for "auto": their labels, n whole numbers. With them accuracy counts, without them
            agreement with the float model's labels.
        tolerance: for "auto": share of the calibration images by which accuracy or agreement may fall.
        progress: for "auto": show what is tried, on standard error if that is a terminal.
        scheme: "modular", fast and without semantic security, or "lattice" (RNS-CKKS), see SECURITY.md. A lattice
            program has no amplification, modulus_bits, guard_bits or search, and runs all passes unless told otherwise;
            its activations are of degree 1 to 4.
        precision_bits: lattice only: noise added at any place is at most 2^-precision_bits of a unit there, 4..24.
        degree: lattice only: the ring degree, 4,096..32,768; by default the least that is wide enough.
        bounds: "interval", or "quadratic": tighter ones through squares, which take about a second and are computed
            again when the program is loaded. A search for scales counts limbs by intervals.
        for_refresh: give an :class:`mcfhe.staged.uncut.Uncut` for :func:`mcfhe.refresh`, which may be deeper than any
            program: nothing is planned or certified for the whole, so there is nothing that "auto" could choose by.
        profile: for "auto": patent or hardened, whose limbs are counted. The program serves both.

    Raises:
        UnsupportedLayerError: a layer that exact residue arithmetic does not run, by name, with what to use instead.
        ParameterError: an argument out of its range, a model in train mode, weights that are not finite or too large,
            no calibration images for "auto", or no scales under which the integers agree with the model.
    """
    shape = check_shape(input_shape)
    # everything that does not depend on the model first: the export takes seconds
    search = scale_bits == _AUTO
    _check_choices(scheme, scale_bits, precision_bits, degree, calibration, profile)
    if scheme == "lattice":
        amplification_bits, modulus_bits, guard_bits = 0, 30, 0
        passes = (*select_passes("default" if passes is None else passes), SUMS_OF_SQUARES)
    open_width, open_amplification = modulus_bits == _AUTO, amplification_bits == _AUTO
    settings = Settings(
        mean=per_channel("mean", mean, shape[0]),
        std=per_channel("std", std, shape[0]),
        scale_bits=_ANY_SCALE if search else whole("scale_bits", scale_bits),
        amplification_bits=4 if open_amplification else whole("amplification_bits", amplification_bits),
        modulus_bits=max(WIDTHS) if open_width else whole("modulus_bits", modulus_bits),
        guard_bits=whole("guard_bits", guard_bits),
        labels=() if labels is None else per_score(labels),
        passes=select_passes("default" if search and passes is None else passes),
        bounds=bounds,
    )
    if for_refresh and (search or open_width or open_amplification or degree is not None):
        raise ParameterError(
            "for_refresh: scale_bits, modulus_bits and amplification_bits are numbers then, and degree is refresh's "
            "max_degree"
        )
    imported = import_module(model, shape)
    if labels is None:
        settings = replace(settings, labels=tuple(str(i) for i in range(imported.output_shape[0])))
    graph = apply_passes(imported, settings.passes)
    source = _Source(imported, graph, settings, _chosen_bits(graph, {} if weight_bits is None else weight_bits))
    if search:
        images = _array(calibration)
        truth = None if calibration_labels is None else _array(calibration_labels)
        agreement = Calibration.of(imported, settings, images, truth, tolerance)
        program = _searched(source, agreement, progress, profile)
    else:
        by_letter = weight_bits is None and set(settings.passes) <= set(select_passes("letter"))
        settings = source.scaled(scheme, by_letter)
        if for_refresh:
            return Uncut(quantise(graph, settings.scale_bits, settings.layer_bits), settings, scheme, precision_bits)
        if scheme == "lattice":
            return _planned(graph, settings, precision_bits, degree)
        letter = None if by_letter else _letter(imported, settings)
        program = Program(graph, replace(settings, letter=letter))
    if open_width or open_amplification:
        program = _cheapest(program, imported, profile, open_width, open_amplification)
    return require_some_basis(program)


def _check_choices(
    scheme: str, scale_bits: object, precision_bits: int, degree: int | None, calibration: object, profile: str
) -> None:
    """What goes with what."""
    if scheme not in SCHEMES:
        raise ParameterError(f"scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    search = scale_bits == _AUTO
    if scheme == "lattice" and (search or not 4 <= whole("precision_bits", precision_bits) <= 24):
        raise ParameterError(
            f"scheme 'lattice': scale_bits must be a number and precision_bits 4..24, not {scale_bits!r} and "
            f"{precision_bits!r}"
        )
    if scheme != "lattice" and degree is not None:
        raise ParameterError("degree: belongs to the lattice scheme; the modular one has no ring")
    if isinstance(scale_bits, str) and not search:
        raise ParameterError(f"scale_bits = {scale_bits!r}: give a whole number, or 'auto' with calibration images")
    if search == (calibration is None):
        raise ParameterError("calibration: images are needed for scale_bits='auto', and for nothing else")
    if profile not in PROFILES:
        raise ParameterError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")


@dataclass(frozen=True, eq=False, slots=True)
class _Source:
    """A network after its passes, from which a program is made, and the scales that were asked for by name."""

    imported: Graph
    graph: Graph
    settings: Settings
    chosen: Mapping[str, int]

    def scaled(self, scheme: str, by_letter: bool) -> Settings:
        """The settings with a scale for every layer; by the letter all share one."""
        precision = self.settings.scale_bits
        if scheme == "lattice":
            from mcfhe.lattice.scales import layer_scales

            bits = layer_scales(self.graph, precision, self.chosen)
        elif by_letter:
            return self.settings
        else:
            lean = without_common_factors(self.graph, relative_bits(self.graph, precision) | dict(self.chosen))
            bits = branch_bits(self.graph, precision, lean, self.chosen)
        return replace(self.settings, weight_bits=tuple(sorted(bits.items())))


def _planned(graph: Graph, settings: Settings, precision_bits: int, degree: int | None) -> Any:
    from mcfhe.lattice.program import LatticeProgram

    return LatticeProgram.planned(graph, settings, precision_bits, degree)


def _cheapest(program: Program, imported: Graph, profile: str, width: bool, amplification: bool) -> Program:
    """The program with what is true chosen, compared with the letter at the same choice."""
    settings = program.settings
    chosen = cheapest(
        program,
        profile,
        None if width else settings.modulus_bits,
        None if amplification else settings.amplification_bits,
    )
    if settings.letter is not None:
        shared = replace(chosen.settings, scale_bits=settings.letter.scale_bits)
        chosen = Program(program.graph, replace(chosen.settings, letter=_letter(imported, shared)))
    chosen.search = program.search
    return chosen


def _searched(source: _Source, calibration: Calibration, progress: bool, profile: str) -> Program:
    letter = select_passes("letter")
    with _status(progress) as report:
        intervals = replace(source.settings, bounds="interval")
        by_letter = apply_passes(source.imported, letter)
        search = Search(source.graph, intervals, by_letter, calibration, source.chosen, report, profile)
        result = search.run(letter)
    found = source.settings
    found = replace(found, scale_bits=result.chosen.input_bits, weight_bits=result.chosen.weight_bits)
    if result.letter is not None:
        found = replace(
            found, letter=_letter(source.imported, replace(source.settings, scale_bits=result.letter.input_bits))
        )
    program = Program(source.graph, found)
    program.search = result
    return program


@contextmanager
def _status(progress: bool) -> Iterator[Callable[[str], None]]:
    """A line on standard error, if that is a terminal, that is replaced by the next one."""
    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda line: None
        return
    with console.status("searching scales") as status:
        yield lambda line: status.update(f"searching scales: {line}")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _letter(imported: Graph, settings: Settings) -> Letter | None:
    """What the letter needs with the same scale; None if it cannot run the network at that scale at all."""
    names = select_passes("letter")
    try:
        program = Program(apply_passes(imported, names), replace(settings, passes=names, weight_bits=None, letter=None))
    except ParameterError:
        return None
    required = tuple(program.certificate(profile).required_bits for profile in PROFILES)
    return Letter(settings.scale_bits, required)


def _chosen_bits(graph: Graph, weight_bits: Any) -> dict[str, int]:
    if not isinstance(weight_bits, Mapping):
        raise ParameterError(f"weight_bits = {weight_bits!r}: give bits by name of a layer")
    known = scaled_constants(graph)
    unknown = [name for name in weight_bits if name not in known]
    if unknown:
        raise ParameterError(
            f"weight_bits: no layer {unknown[0]!r} that pays a scale after the passes; there are "
            f"{', '.join(known) or 'none'}"
        )
    chosen = {name: whole(f"weight_bits of layer {name!r}", bits) for name, bits in weight_bits.items()}
    wrong = next((name for name, bits in chosen.items() if not 0 <= bits <= MAX_LAYER_BITS), None)
    if wrong is not None:
        raise ParameterError(f"weight_bits: {chosen[wrong]} for layer {wrong!r} is not in 0..{MAX_LAYER_BITS}")
    return chosen
