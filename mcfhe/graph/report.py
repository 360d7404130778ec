"""The text of ``Program.summary()``: the plan layer by layer, and what one image costs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcfhe.graph.certificate import Certificate
from mcfhe.graph.order import Order
from mcfhe.graph.settings import Settings
from mcfhe.graph.steps import AddStep, ConcatStep, Conv2dStep, IntegerProgram, LinearStep, PolyStep, PoolStep, Step

_WORD_BYTES = 4  # a residue on the wire
_HEADINGS = ("layer", "op", "output", "order", "scale", "bits", "headroom", "alignment and constants")
_MAX_ALIGNED = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image costs in one profile. Bytes are those of residues; containers add a few hundred."""

    limbs: int
    sub_images: int  # of one channel: limbs x lanes
    bytes_up: int
    bytes_down: int
    macs: int  # multiply-accumulates on the plain network
    residue_macs: int  # the same on all sub-images


def summarise(
    title: str,
    profile: str,
    plans: Mapping[str, tuple[IntegerProgram, Certificate]],
    settings: Settings,
    lanes: int,
    notes: Sequence[str],
) -> str:
    """A table of the layers in one profile and one line of cost for each."""
    program, certificate = plans[profile]
    by_the_letter = settings.weight_bits is None
    unit = settings.scale_bits if by_the_letter else 0  # of the orders shown; without a shared scale k is in bits
    order = "(t, l) stands for V / (a^t Delta^l)" if by_the_letter else "(t, k bits) stands for V / (a^t 2^k)"
    lines = [
        f"{title}: input {_shape(program.input_shape)}, {len(settings.labels)} labels, "
        f"{'' if by_the_letter else 'input '}scale 2^{settings.scale_bits}, "
        f"amplification 2^{settings.amplification_bits}, {settings.modulus_bits}-bit moduli,",
        *_wrapped(f"guard {settings.guard_bits} bits, passes: {', '.join(settings.passes) or 'none'}"),
        f"profile {profile}: order {order}; bits are of the largest proved |V|, headroom",
        "is up to half of the smallest product of moduli allowed; only the scores must fit, other layers may wrap",
        "",
        *_table(program, certificate, unit),
        "",
    ]
    for index, (name, (other, bounds)) in enumerate(plans.items()):
        cost = cost_of(other, bounds, settings.modulus_bits, lanes, public_key=name == "patent")
        indent = " " * len(name)
        lines += [
            f"{name}: order {other.output_order.label(unit)}, scores of {bounds.layers[-1].bits} bits, "
            f"widest layer {bounds.widest.name} with {bounds.widest.bits}; the moduli must hold",
            f"{indent}  {bounds.required_bits} bits: {cost.limbs} limbs, at {lanes} lanes {cost.sub_images} sub-images "
            "a channel;",
            f"{indent}  per image {format_bytes(cost.bytes_up)} up, {format_bytes(cost.bytes_down)} down, "
            f"{cost.macs:,} MACs, {cost.residue_macs:,} on residues",
        ]
        if settings.letter is not None and index < len(settings.letter.required_bits):
            before = settings.letter.required_bits[index]
            limbs = limbs_needed((1 << before) - 1, settings.modulus_bits)
            lines.append(
                f"{indent}  by the letter, scale 2^{settings.letter.scale_bits}: {before} bits, {limbs} limbs before, "
                f"{cost.limbs} after the passes"
            )
    if notes:
        lines += ["", *(f"note: {note}" for note in notes)]
    return "\n".join(lines)


def limbs_needed(required_product: int, modulus_bits: int) -> int:
    """Limbs of a freshly drawn basis whose product exceeds ``required_product``.

    Primes are taken at the middle of the range they are drawn from (the top eighth of the width, for narrow ones all
    of it), so a basis may in rare cases have one limb more or less.
    """
    middle = 15 << (modulus_bits - 4) if modulus_bits >= 20 else 3 << (modulus_bits - 2)
    limbs = max(1, math.floor(math.log(required_product, middle)))
    while middle**limbs <= required_product:
        limbs += 1
    return limbs


def cost_of(
    program: IntegerProgram, certificate: Certificate, modulus_bits: int, lanes: int, *, public_key: bool
) -> Cost:
    """The cost of one image; ``public_key``: an encryption of 1 travels with it."""
    limbs = limbs_needed(certificate.required_product, modulus_bits)
    residues = limbs * lanes
    shapes = [program.input_shape, *(step.shape for step in program.steps)]
    macs = sum(_macs(step) for step in program.steps)
    return Cost(
        limbs=limbs,
        sub_images=residues,
        bytes_up=_WORD_BYTES * residues * (math.prod(program.input_shape) + public_key),
        bytes_down=_WORD_BYTES * residues * math.prod(shapes[-1]),
        macs=macs,
        residue_macs=macs * residues,
    )


def _macs(step: Step) -> int:
    match step:
        case Conv2dStep():
            return math.prod(step.shape) * math.prod(step.weight.shape[1:])
        case LinearStep():
            return int(step.weight.size)
    return 0


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, break_long_words=False)


def _table(program: IntegerProgram, certificate: Certificate, unit: int) -> list[str]:
    room = certificate.required_bits - 1
    orders = [program.input_order]
    first = _row(("input", "", _shape(program.input_shape), orders[0].label(unit), ""), certificate, 0, room)
    rows: list[tuple[str, ...]] = [_HEADINGS, (*first, "")]
    for index, step in enumerate(program.steps):
        sources = [orders[i] for i in step.inputs]
        scale = "2^" + str(step.order.k - max(o.k for o in sources)) if _has_scale(step, sources) else ""
        cells = (step.name, step.kind, _shape(step.shape), step.order.label(unit), scale)
        rows.append((*_row(cells, certificate, index + 1, room), _constants(step, sources, unit)))
        orders.append(step.order)
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS) - 1)]
    return ["  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]


def _row(cells: tuple[str, ...], certificate: Certificate, index: int, room: int) -> tuple[str, ...]:
    bits = certificate.layers[index].bits
    return (*cells, str(bits), str(room - bits))


def _has_scale(step: Step, sources: Sequence[Order]) -> bool:
    """Does the layer multiply by constants that carry a scale of their own?"""
    return isinstance(step, Conv2dStep | LinearStep | PoolStep) and step.order.k > sources[0].k


def _constants(step: Step, sources: Sequence[Order], unit: int) -> str:
    """What a constant of the layer is multiplied by so that it is aligned, in powers of a and 2."""
    match step:
        case Conv2dStep() | LinearStep():
            return f"bias: {_power(step.order.t, step.order.k - unit)}" if step.bias is not None else ""
        case PoolStep():
            return f"factor {step.factor}" if step.factor != 1 else ""
        case PolyStep():
            x = sources[0]
            used = [i for i in range(len(step.coefficients[0])) if any(row[i] for row in step.coefficients)]
            # A_i is about c_i times this: the term's alignment and the scale of its coefficient in one
            terms = [f"c{i}: {_power(step.order.t - i * x.t, step.order.k - i * x.k)}" for i in used]
            return ", ".join(terms)
        case AddStep() | ConcatStep():
            aligned = [
                f"x{i}: {_power(step.order.t - o.t, step.order.k - o.k)}"
                for i, o in enumerate(sources)
                if step.factors[i] != 1
            ]
            more = f", and {len(aligned) - _MAX_ALIGNED} more" if len(aligned) > _MAX_ALIGNED else ""
            return (", ".join(aligned[:_MAX_ALIGNED]) + more) if aligned else "aligned already"
    return ""


def _power(t: int, k: int) -> str:
    parts = ([f"a^{t}" if t > 1 else "a"] if t else []) + ([f"2^{k}"] if k else [])
    return " ".join(parts) or "1"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def format_bytes(count: int) -> str:
    """Four digits, in B, KiB, MiB or GiB."""
    size, units = float(count), iter(("B", "KiB", "MiB"))
    for unit in units:
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
