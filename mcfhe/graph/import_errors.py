"""Which layer it was, when a user's forward() fails or cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def failing_layer(model: nn.Module, run: Callable[[], Any]) -> str:
    """``"layer 'path' (Class): "`` of the innermost module that was running when ``run()`` failed; "" if unknown.

    ``run`` is called once more, with hooks, so this is for after a failure.
    """
    with _watched(model) as running:
        try:
            run()
        except Exception:  # the same as before; its message is known already
            for path, module in reversed(running):
                if path:
                    return f"layer {path!r} ({type(module).__name__}): "
    return ""


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """A stack of the modules whose forward() is running."""
    running: list[tuple[str, nn.Module]] = []
    hooks = []

    def entered(path: str, module: nn.Module) -> None:
        running.append((path, module))

    def left(*_: Any) -> None:
        running.pop()

    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _inputs, path=path: entered(path, module)))
        hooks.append(module.register_forward_hook(left))
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def cycle(model: nn.Module) -> tuple[str, str] | None:
    """(path, path of what it contains again) of a module that contains itself; None if there is none."""

    def search(module: nn.Module, path: str, above: dict[int, str]) -> tuple[str, str] | None:
        above = above | {id(module): path}
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if id(child) in above:
                return inner, above[id(child)]
            if found := search(child, inner, above):
                return found
        return None

    return search(model, "", {})
