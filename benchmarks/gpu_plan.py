"""What ``python -m benchmarks.gpu`` measures, and how much work each case is. No device needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod

from tests.shapes import LENET_CONVS, LENET_LINEARS, WIDE_CONV, ConvShape

ENTRY = 8  # bytes of a residue in device memory
WEIGHT_LIMIT = 200  # |q| of the weights drawn: two int8 digits
SMALL_WEIGHT_LIMIT = 127  # one
DEMO_LIMBS, DEMO_LANES = 16, 4  # the shipped LeNet at its default scale, patent profile
MODULUS_BITS = 30
POOL = (2, 2)  # as in the demo network
INT8_PLANES = 4  # bytes of a residue

# Paths of the convolution that are timed: name -> (arithmetic, unit of its floor, int8 products a multiply-add).
PATHS: dict[str, tuple[str, str, int]] = {
    "auto": ("auto", "double", 1),
    "double": ("double", "double", 1),
    "int64": ("int64", "int64", 1),
    "int64-mid": ("int64-mid", "int64", 1),
    "int8": ("int8", "int8", 2 * INT8_PLANES),
    "int8, |q| < 128": ("int8", "int8", INT8_PLANES),
}


@dataclass(frozen=True)
class ConvCase:
    """One layer at ``limbs`` x ``stream`` sub-images."""

    name: str
    shape: ConvShape
    limbs: int
    stream: int
    linear: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, L = {self.limbs}, S = {self.stream}"

    @property
    def macs(self) -> int:
        return self.shape.macs * self.limbs * self.stream

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.limbs, self.shape.channels, self.shape.height, self.shape.width, self.stream)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.limbs, self.shape.out_channels, *self.shape.out_size, self.stream)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.shape.out_channels, self.shape.channels // self.shape.groups, *self.shape.kernel)

    @property
    def taps(self) -> int:
        return prod(self.weight_shape[1:])

    @property
    def bytes_moved(self) -> int:
        """Every input read once and every output written once."""
        return ENTRY * (prod(self.x_shape) + prod(self.weight_shape) + prod(self.y_shape))

    @property
    def pooled_shape(self) -> tuple[int, ...]:
        """What is left of the output behind a pool of :data:`POOL`."""
        height, width = self.shape.out_size
        return (self.limbs, self.shape.out_channels, height // POOL[0], width // POOL[1], self.stream)

    @property
    def pooled_work(self) -> tuple[int, int]:
        """Bytes moved and multiply-adds of the convolution with that pool in one launch."""
        stored = prod(self.pooled_shape)
        moved = ENTRY * (prod(self.x_shape) + prod(self.weight_shape) + stored)
        return moved, stored * prod(POOL) * self.taps

    @property
    def bytes_held(self) -> int:
        """Input, output, and the output of another path to compare with."""
        return ENTRY * (prod(self.x_shape) + 2 * prod(self.y_shape))


def conv_cases() -> list[ConvCase]:
    conv1, conv2 = LENET_CONVS["conv1"], LENET_CONVS["conv2"]
    fc1 = ConvShape(LENET_LINEARS["fc1"][0], 1, 1, LENET_LINEARS["fc1"][1], kernel=(1, 1))
    return [
        ConvCase("conv2", conv2, 8, 4096),
        ConvCase("wide", WIDE_CONV, 16, 4),
        ConvCase("conv1", conv1, 8, 4096),
        ConvCase("conv2", conv2, DEMO_LIMBS, 4),
        ConvCase("conv1", conv1, DEMO_LIMBS, 4),
        ConvCase("wide", WIDE_CONV, 16, 64),
        ConvCase("conv2", conv2, 8, 400),
        ConvCase("fc1", fc1, DEMO_LIMBS, 4, linear=True),
        ConvCase("fc1", fc1, 8, 4096, linear=True),
    ]


@dataclass(frozen=True)
class NetworkCase:
    """The demo network (or the same layers on another image size) at one size of everything."""

    axis: str
    limbs: int = DEMO_LIMBS
    lanes: int = DEMO_LANES
    batch: int = 1
    image: int = 28

    @property
    def title(self) -> str:
        return f"N = {self.limbs}, M = {self.lanes}, batch {self.batch}, {self.image} x {self.image}"

    @property
    def sub_images(self) -> int:
        return self.limbs * self.lanes * self.batch


# The throughput sweep reaches past the size of one tile.
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)


def network_cases() -> list[NetworkCase]:
    return [
        *(NetworkCase("batch", batch=batch) for batch in BATCHES),
        *(NetworkCase("N", limbs=limbs, batch=64) for limbs in (1, 2, 4, 8, 16, 32)),
        *(NetworkCase("M", lanes=lanes, batch=64) for lanes in (1, 2, 4, 8, 16)),
        *(NetworkCase("image", batch=64, image=image) for image in (20, 28, 56)),
    ]


@dataclass(frozen=True)
class LatticeCase:
    """Ciphertexts of ``positions`` pixels or features: ``limbs`` primes and a special one, polynomials of ``n``.

    A pool takes four positions at once.
    """

    n: int
    limbs: int
    positions: int

    @property
    def title(self) -> str:
        return f"n = {self.n}, L = {self.limbs}, {self.positions} positions"

    @property
    def butterflies(self) -> int:
        """Of one transform."""
        return self.n // 2 * (self.n.bit_length() - 1)

    @property
    def prime_bits(self) -> list[int]:
        """As SEAL's CoeffModulus.Create is asked: below 2^31 at both ends, below 2^30 between."""
        return [31, *[30] * (self.limbs - 1), 31]

    @property
    def component(self) -> int:
        """Bytes of one component of all ciphertexts."""
        return ENTRY * self.limbs * self.positions * self.n


LATTICE_NETWORK = "demo network in the lattice scheme, a full batch"


def lattice_cases() -> list[LatticeCase]:
    """As many limbs as the 128-bit table of HomomorphicEncryption.org allows, or 24."""
    return [LatticeCase(8192, 6, 512), LatticeCase(16384, 13, 96), LatticeCase(32768, 24, 16)]


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))


def moduli(count: int) -> tuple[int, ...]:
    """The ``count`` largest primes below 2^30: as wide as a client's, without needing one."""
    found: list[int] = []
    candidate = (1 << MODULUS_BITS) - 1
    while len(found) < count:
        if is_prime(candidate):
            found.append(candidate)
        candidate -= 2
    return tuple(found)


def limbs_needed(required_product: int) -> int:
    """Limbs of :data:`MODULUS_BITS` bits whose product exceeds ``required_product``."""
    count = 1
    while prod(moduli(count)) <= required_product:
        count += 1
    return count


def describe() -> list[str]:
    """The plan in lines, for --dry-run; ValueError where it cannot be measured."""
    lines = []
    for case in conv_cases():
        if min(case.y_shape) < 1 or case.taps * WEIGHT_LIMIT > 1 << 22:
            raise ValueError(f"{case.title}: outside what every path can do")
        lines.append(
            f"{case.title:28} {case.macs / 1e9:9.3f} G multiply-adds, {case.bytes_moved / 2**20:9.1f} MiB moved, "
            f"{case.bytes_held / 2**30:6.2f} GiB held"
        )
    for lattice in lattice_cases():
        lines.append(f"lattice ops, {lattice.title:36} {3 * lattice.component / 2**30:6.2f} GiB a relinearisation")
    lines.append(LATTICE_NETWORK)
    for network in network_cases():
        lines.append(f"demo network, {network.axis:6} {network.title:36} {network.sub_images:9} sub-images")
    return lines
