"""Shapes and moduli that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

EDGE_MODULI = (2, 3, 1000, (1 << 30) - 35, (1 << 31) - 1)  # pairwise coprime but 2 and 1000: ops need no coprimality
PRIMES_30 = (1073741789, 1073741783, 1073741741, 1073741723, 1073741719, 1073741717, 1073741689, 1073741671)


@dataclass(frozen=True)
class ConvShape:
    """x [L, C, H, W, S] with weight [O, C / groups, kh, kw]."""

    channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        sizes = ((self.height, 0), (self.width, 1))
        h, w = (
            (n + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for n, i in sizes
        )
        return h, w

    @property
    def macs(self) -> int:
        """Multiply-adds for one sub-image set (one limb, one stream)."""
        h, w = self.out_size
        return self.out_channels * h * w * self.channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def arguments(self) -> dict[str, object]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


# Small enough for the Python-integer oracle.
SMALL_CONVS = {
    "plain": ConvShape(2, 5, 6, 3),
    "one-channel": ConvShape(1, 6, 6, 2, kernel=(5, 5), padding=(2, 2)),
    "odd-channels": ConvShape(3, 5, 5, 5, padding=(1, 1)),
    "stride": ConvShape(2, 7, 8, 4, stride=(2, 3), padding=(1, 2)),
    "dilation": ConvShape(2, 8, 7, 2, dilation=(2, 3), padding=(2, 1)),
    "groups": ConvShape(4, 4, 4, 6, groups=2, padding=(1, 1)),
    "depthwise": ConvShape(3, 5, 4, 3, groups=3, stride=(1, 2)),
    "tall-kernel": ConvShape(2, 6, 3, 2, kernel=(4, 1)),
    "wide-kernel": ConvShape(2, 3, 9, 2, kernel=(1, 4), stride=(1, 2), padding=(0, 3)),
    "pointwise": ConvShape(5, 3, 3, 7, kernel=(1, 1)),
    "everything": ConvShape(4, 9, 8, 4, kernel=(3, 2), stride=(2, 2), padding=(2, 1), dilation=(2, 2), groups=2),
}
# The demo network's layers.
LENET_CONVS = {
    "conv1": ConvShape(1, 28, 28, 8, kernel=(5, 5), padding=(2, 2)),
    "conv2": ConvShape(8, 14, 14, 16, kernel=(5, 5), padding=(2, 2)),
}
WIDE_CONV = ConvShape(64, 32, 32, 64, padding=(1, 1))
LENET_LINEARS = {"fc1": (784, 64), "fc2": (64, 10)}

# expand_uniform refuses one word in 2^33, so seeds that meet one were searched for: (seed, row, place) in rows of 512
# words modulo this modulus, whose refusals are the most frequent there are.
REFUSING_MODULUS = 2147443516
REFUSING = [
    (number.to_bytes(64, "little"), word // 512, word % 512)
    for number, word in ((2503660, 2805), (5515821, 3469), (10013154, 1235))
]
