"""What may not run while a CUDA graph is captured, seen without a device: by the ops that a function calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Each waits for the device or copies from pageable host memory.
WAITS = {
    "aten::lift_fresh",  # torch.tensor(data, device=...)
    "aten::_local_scalar_dense",  # int(tensor), tensor.item()
    "aten::_to_copy",  # tensor.to(device)
    "aten::nonzero",
    "aten::index",  # by a list or a mask, which travel first
    "aten::equal",
}
BOUNDED = {"mcfhe::conv2d": 9, "mcfhe::linear": 5}  # op -> place of weight_bounds: absent, the op measures and waits


class NotCapturable(AssertionError):
    """An op that ends a capture."""


class Capture(TorchDispatchMode):
    """Within it, whatever would end a capture on a device raises NotCapturable."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        place = BOUNDED.get(name)
        if name in WAITS:
            raise NotCapturable(f"{name} waits for the device or copies from pageable memory")
        if place is not None and (len(args) <= place or args[place] is None):
            raise NotCapturable(f"{name} without weight_bounds measures them and waits")
        return func(*args, **(kwargs or {}))


def check_capturable(function: Callable[[], object]) -> None:
    with Capture():
        function()
