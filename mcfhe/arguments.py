"""Checks of what a user passes in, shared by modules that have nothing else in common. Each raises ParameterError with
the argument's name, its value and what to give instead."""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mcfhe.errors import ParameterError

if TYPE_CHECKING:
    import torch


def require(name: str, value: object, kind: type | tuple[type, ...], advice: str) -> None:
    """``value`` must be an instance of ``kind``; ``advice`` says where one comes from."""
    if not isinstance(value, kind):
        raise ParameterError(f"{name}: {type(value).__name__} given; {advice}")


def whole(name: str, value: Any) -> int:
    """``value`` as int: bools, floats and everything else that is not a whole number are refused."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ParameterError(f"{name} = {shown(value)} is not a whole number") from None


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """A finite real number in low..high, which is not ``low`` itself if ``above``. Texts and bools are none."""
    try:
        if isinstance(value, str | bytes | bool | np.bool_):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"{name} = {shown(value)} is not a number") from None
    if not math.isfinite(found) or not low <= found <= high or (above and found == low):
        limits = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
        limits += [f"at most {high:g}"] if high < math.inf else []
        raise ParameterError(f"{name} = {shown(value)}: use a finite number {', '.join(limits)}".rstrip())
    return found


def torch_device(device: Any) -> torch.device:
    """``"cpu"``, ``"cuda"`` or ``"cuda:1"``, as PyTorch writes it. Whether it is there is not looked at."""
    import torch

    if isinstance(device, str | torch.device):
        try:
            return torch.device(device)
        except RuntimeError:
            pass
    raise ParameterError(f"device {shown(device)}: choose cpu, cuda or cuda:NUMBER")


def training_device(device: Any) -> torch.device:
    """:func:`torch_device`, one that this torch can compute on."""
    import torch

    found = torch_device(device)
    try:
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError):  # the second from a torch without CUDA
        raise ParameterError(f"device {shown(device)}: this torch cannot compute on it; use device='cpu'") from None
    return found


def file_path(path: Any, name: str = "path") -> str:
    """A path that can be opened: text without NUL."""
    found = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(found, str) or "\0" in found:
        raise ParameterError(f"{name} {shown(path)}: give the name of a file")
    return found


def shown(value: object, most: int = 80) -> str:
    """At most so many ASCII characters, whatever was given: numbers may have more digits than Python prints."""
    try:
        text = ascii(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 3] + "..."
