"""From a module to a program: import, passes, scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mcfhe.errors import ParameterError
from mcfhe.graph.import_ import check_shape, import_module
from mcfhe.graph.nodes import Graph
from mcfhe.graph.passes import apply_passes, select_passes
from mcfhe.graph.settings import Letter, Numbers, Settings, per_channel, per_score, whole
from mcfhe.modular.constants import relative_bits, scaled_constants, without_common_factors
from mcfhe.program import Program
from mcfhe.spec import PROFILES

__all__ = ["by_the_letter", "compile", "layer_settings"]


def compile(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
    scale_bits: int = 8,
    amplification_bits: int = 4,
    modulus_bits: int = 30,
    guard_bits: int = 32,
    labels: Sequence[str] | None = None,
    passes: str | Sequence[str] | None = None,
    weight_bits: Mapping[str, int] | None = None,
) -> Program:
    """A trained module as a program on encrypted images.

    Args:
        model: in eval mode, from normalised floats ``[batch, C, H, W]`` to scores ``[batch, labels]``.
        input_shape: (C, H, W) of one image.
        mean, std: a pixel u in 0..255 of channel c enters the network as (u / 255 - mean_c) / std_c; one number, or
            one a channel; std positive.
        scale_bits: log2 of the scale Delta, 1..30. More bits: closer to the float model, more limbs.
        amplification_bits: log2 of the amplification a, 0..20. Noise is below a / 2.
        modulus_bits: width of the primes that a client draws, 8..31.
        guard_bits: the moduli's product exceeds twice the largest proved output by this factor, 0..256.
        labels: a name for each score; "0", "1", ... by default.
        passes: graph passes to run: "letter" (the patent's own plan), "default" (all that save orders) or a list of
            names; None stands for "letter".
        weight_bits: bits of scale by name of a layer, 0..48. With passes that fold, or with any bits given, every layer
            has a scale of its own; a layer that is not named gets the one under which its largest weight is
            2**scale_bits or just below. By the letter all layers share ``scale_bits``.

    Raises:
        UnsupportedLayerError: a layer that exact residue arithmetic does not run, by name, with what to use instead.
        ParameterError: an argument out of its range, a model in train mode, weights that are not finite or too large.
    """
    shape = check_shape(input_shape)
    # everything that does not depend on the model first: the export takes seconds
    settings = Settings(
        mean=per_channel("mean", mean, shape[0]),
        std=per_channel("std", std, shape[0]),
        scale_bits=whole("scale_bits", scale_bits),
        amplification_bits=whole("amplification_bits", amplification_bits),
        modulus_bits=whole("modulus_bits", modulus_bits),
        guard_bits=whole("guard_bits", guard_bits),
        labels=() if labels is None else per_score(labels),
        passes=select_passes(passes),
    )
    imported = import_module(model, shape)
    if labels is None:
        settings = replace(settings, labels=tuple(str(i) for i in range(imported.output_shape[0])))
    graph = apply_passes(imported, settings.passes)
    if weight_bits is None and set(settings.passes) <= set(select_passes("letter")):
        return Program(graph, settings)
    bits = relative_bits(graph, settings.scale_bits) | _chosen_bits(graph, weight_bits or {})
    return Program(graph, layer_settings(graph, settings, bits, _letter(imported, settings)))


def by_the_letter(imported: Graph, settings: Settings) -> Program:
    """The program of an imported graph by the letter, with the settings' scale."""
    names = select_passes("letter")
    plain = replace(settings, passes=names, weight_bits=None, letter=None)
    return Program(apply_passes(imported, names), plain)


def layer_settings(graph: Graph, settings: Settings, bits: Mapping[str, int], letter: Letter | None) -> Settings:
    """The settings with a scale for every layer, without the powers of two that all weights of a layer share."""
    lean = without_common_factors(graph, bits)
    return replace(settings, weight_bits=tuple(sorted(lean.items())), letter=letter)


def _letter(imported: Graph, settings: Settings) -> Letter | None:
    """What the letter needs with the same scale; None if it cannot run the network at that scale at all."""
    try:
        program = by_the_letter(imported, settings)
    except ParameterError:
        return None
    return Letter(
        program.settings.scale_bits, tuple(program.certificate(profile).required_bits for profile in PROFILES)
    )


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
    wrong = next((name for name, bits in chosen.items() if not 0 <= bits <= 48), None)
    if wrong is not None:
        raise ParameterError(f"weight_bits: {chosen[wrong]} for layer {wrong!r} is not in 0..48")
    return chosen
