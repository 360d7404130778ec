"""mcfhe: classify images with a CNN on encrypted data, exactly.

The modular scheme is a fast obfuscation, not semantic security; see SECURITY.md before pointing it at anything that
matters.

Names are imported on first use, so that a client does not load the engine and a server does not load secret-key code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BuildError": "mcfhe.errors",
    "Client": "mcfhe.client",
    "ClientSpec": "mcfhe.spec",
    "EvaluationKey": "mcfhe.modular.keys",
    "McfheError": "mcfhe.errors",
    "PolyActivation": "mcfhe.activations",
    "Program": "mcfhe.program",
    "PublicKey": "mcfhe.lattice.public_key",
    "RemoteServer": "mcfhe.remote",
    "Request": "mcfhe.wire",
    "Response": "mcfhe.wire",
    "SecretKey": "mcfhe.modular.keys",
    "Server": "mcfhe.server",
    "StagedClient": "mcfhe.staged.client",
    "StagedProgram": "mcfhe.staged.program",
    "StagedServer": "mcfhe.staged.program",
    "build_info": "mcfhe._extension",
    "compile": "mcfhe.compiler.pipeline",
    "convert": "mcfhe.conversion.convert",
    "explain": "mcfhe.compiler.shortfall",
    "finetune": "mcfhe.conversion.finetuning",
    "load_program": "mcfhe.program",
    "refresh": "mcfhe.staged.cutting",
}
_MODULES = ("activations", "datasets", "errors", "models", "modular", "ops", "reference", "train")

__all__ = [
    "BuildError",
    "Client",
    "ClientSpec",
    "EvaluationKey",
    "McfheError",
    "PolyActivation",
    "Program",
    "PublicKey",
    "RemoteServer",
    "Request",
    "Response",
    "SecretKey",
    "Server",
    "StagedClient",
    "StagedProgram",
    "StagedServer",
    "__version__",
    "activations",
    "build_info",
    "compile",
    "convert",
    "datasets",
    "errors",
    "explain",
    "finetune",
    "load_program",
    "models",
    "modular",
    "ops",
    "reference",
    "refresh",
    "train",
]

if TYPE_CHECKING:
    from mcfhe import activations, datasets, errors, models, modular, ops, reference, train
    from mcfhe._extension import build_info
    from mcfhe.activations import PolyActivation
    from mcfhe.client import Client
    from mcfhe.compiler.pipeline import compile
    from mcfhe.compiler.shortfall import explain
    from mcfhe.conversion.convert import convert
    from mcfhe.conversion.finetuning import finetune
    from mcfhe.errors import BuildError, McfheError
    from mcfhe.lattice.public_key import PublicKey
    from mcfhe.modular.keys import EvaluationKey, SecretKey
    from mcfhe.program import Program, load_program
    from mcfhe.remote import RemoteServer
    from mcfhe.server import Server
    from mcfhe.spec import ClientSpec
    from mcfhe.staged.client import StagedClient
    from mcfhe.staged.cutting import refresh
    from mcfhe.staged.program import StagedProgram, StagedServer
    from mcfhe.wire import Request, Response


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mcfhe.{name}")
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'mcfhe' has no attribute {name!r}") from None
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
