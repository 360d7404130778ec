"""Where a network compares values: its activations and max pools, each as a module of its own.

``torch.fx`` finds what is called as a function or method (``F.relu(x)``, ``x.relu()``) and modules that run more than
once (the one ``relu`` of a residual block). Both become modules at places of their own, because each call sees other
inputs and is fitted by itself.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

#: Modules that act on every value by itself.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid),
    *(nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink),
    *(nn.Softshrink, nn.Tanhshrink, nn.Threshold),
)
MAX_POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)

_FUNCTIONS: set[Any] = {
    *(F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh),
    *(F.softplus, F.softsign, F.logsigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.hardshrink, F.softshrink),
    *(F.tanhshrink, F.threshold, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.selu, torch.celu),
}
_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}
_POOLS: dict[Any, type[nn.Module]] = {
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}


class Elementwise(nn.Module):
    """A call of a function with constant arguments, as a module."""

    def __init__(
        self, name: str, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.name, self.function, self.args, self.kwargs = name, function, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)


def separated(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every activation and max pool that ``torch.fx`` sees is a module called once.

    A model that has them so already, or that fx cannot trace, is copied as it is.
    """
    model = copy.deepcopy(model)
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # control flow on shapes, for one: torch.export may still follow it; fx has no common error
        return model
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    changed, seen = False, Counter[Any]()
    for node in list(traced.graph.nodes):
        replacement = _module_of(node)
        if node.op == "call_module" and isinstance(modules[node.target], ACTIVATIONS + MAX_POOLS):
            seen[node.target] += 1
            if calls[node.target] > 1 and seen[node.target] > 1:
                replacement = copy.deepcopy(modules[node.target])
        if replacement is None:
            continue
        name = _free_name(modules, str(node.target) if node.op == "call_module" else node.name)
        modules[name] = replacement
        traced.add_submodule(name, replacement)
        with traced.graph.inserting_after(node):
            call = traced.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
        changed = True
    if not changed:
        return model
    traced.graph.lint()
    traced.recompile()
    return traced


def _module_of(node: fx.Node) -> nn.Module | None:
    """What a function or method call becomes; None if it is none of ours, or takes values that are no constants."""
    sources = node.all_input_nodes
    if node.op not in ("call_function", "call_method") or len(sources) != 1:
        return None
    args, target = tuple(node.args[1:]), node.target
    kwargs = {name: value for name, value in node.kwargs.items() if name not in ("input", "inplace")}
    if isinstance(target, str):
        plain = target.rstrip("_")
        return Elementwise(plain, operator.methodcaller(plain), (), {}) if target in _METHODS else None
    if target in _FUNCTIONS:
        return Elementwise(target.__name__.rstrip("_"), target, args, kwargs)
    return _POOLS[target](*args, **kwargs) if target in _POOLS else None


def _free_name(modules: dict[str, nn.Module], name: str) -> str:
    number, found = 1, name
    while found in modules:
        number += 1
        found = f"{name}_{number}"
    return found
