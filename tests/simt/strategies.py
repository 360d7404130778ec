"""Random convolutions for the SIMT tests."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.simt.cases import ARITHMETIC, BIG, MODULI, Conv
from tests.simt.oracle import Pair

TILED = ("small", "medium", "large")


@st.composite
def convolutions(draw: st.DrawFn, pools: Sequence[Pair] = ()) -> Conv:
    """A small convolution by one arithmetic path and one tile; with ``pools``, one of them as the window of its pool,
    which fits the result once or more."""
    pool = draw(st.sampled_from(pools)) if pools else None
    groups = draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))

    def extent(axis: int) -> int:
        one = dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis]
        window = 1 if pool is None else pool[axis]
        return max(1, one + stride[axis] * (window - 1)) + draw(st.integers(0, 4))

    return Conv(
        moduli=draw(st.lists(st.sampled_from(MODULI), min_size=1, max_size=2)),
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 9)),
        size=(extent(0), extent(1)),
        stream=draw(st.sampled_from([1, 2, 3, 4, 8, 32, 33, 70])),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        poly=draw(st.sampled_from(["", "square", "shared", "channel"])),
        degree=draw(st.integers(1, 4)),
        max_weight=draw(st.sampled_from([1, 255, 2**20, BIG])),
        seed=draw(st.integers(0, 2**16)),
        arithmetic=(draw(st.sampled_from(list(ARITHMETIC))),),
        tiles=(draw(st.sampled_from([*TILED, "direct"] if pool is None else TILED)),),
        pool=pool,
        scaled=pool is not None and draw(st.booleans()),
    )


def examples(count: int) -> settings:
    """``count`` examples, the same at every run; the driver is made once for all of them."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
