"""Every error a user can provoke, each with one message that names the field, the value and the fix.

All of them derive from :class:`McfheError`, so a caller (the CLI, a server) can tell a refusal from a bug.
The ones that are also bad arguments in the Python sense derive from :class:`ValueError` as well.
"""

from __future__ import annotations


class McfheError(Exception):
    """Base of everything mcfhe refuses on purpose."""


class ParameterError(McfheError, ValueError):
    """A parameter is outside its range or two of them do not go together."""


class ImageError(ParameterError):
    """Images of another shape, dtype or range than the program's input."""


class DepthError(ParameterError):
    """The network has more activations in a row than the scheme's limits hold. ``what``: that, without the advice."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}; {advice}" if advice else what)
        self.what = what


class UnsupportedLayerError(ParameterError):
    """The model holds a layer that exact residue arithmetic does not run; says what to use instead."""


class CapacityError(ParameterError):
    """The modular basis is too small for the program: the output could wrap. Carries both bit counts."""


class FormatError(McfheError, ValueError):
    """A file or message is truncated, altered, of another kind or of another version."""


class SecretFieldError(FormatError):
    """A file or message with secret fields was given to code that must never see them."""


class MismatchError(McfheError, ValueError):
    """Two things that must belong together do not: program and request, key and response."""


class UnknownKeyError(MismatchError):
    """A message names an evaluation key by an id under which the server holds none (any more)."""


class WorkerError(McfheError):
    """Workers died or were late, and what they had cannot be spared; the request may be sent, or made, again."""


class ServiceError(McfheError):
    """A remote server refused, failed or was not reached. ``status``: its HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DecryptionError(McfheError):
    """The decrypted integers lie outside the proved bound: a limb is damaged, so no label is returned."""


class BuildError(McfheError):
    """The compiled extension is missing or does not fit the installed torch."""
