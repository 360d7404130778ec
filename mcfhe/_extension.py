"""Loads the compiled ops once and tells what was built."""

from __future__ import annotations

import importlib
import os
import platform
from functools import cache
from typing import Any

import torch

from mcfhe.errors import BuildError


@cache
def load() -> None:
    """Import ``mcfhe._C``, which registers ``torch.ops.mcfhe``; BuildError says what to do when it is missing."""
    try:
        importlib.import_module("mcfhe._C")
    except ImportError as error:
        raise BuildError(
            f"the compiled extension mcfhe._C does not load ({error}); build it with "
            "`pip install --no-build-isolation -e .` against the installed torch"
        ) from None
    except RuntimeError as error:  # static initialisers: a torch without the stable ABI this was built for
        raise BuildError(f"mcfhe._C does not fit torch {torch.__version__} ({error}); rebuild it") from None


def has_cuda_kernels() -> bool:
    """Whether the extension was built with its CUDA kernels (a GPU need not be there)."""
    load()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("mcfhe::conv2d", "CUDA"))


def build_info() -> dict[str, Any]:
    """Versions and capabilities of this build: JSON-able, for ``mcfhe info`` and bug reports."""
    from mcfhe import __version__

    load()
    cuda = has_cuda_kernels()
    return {
        "mcfhe": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cpu_isa": torch.ops.mcfhe.cpu_isa(),
        "threads": torch.get_num_threads(),
        "cuda_kernels": cuda,
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
