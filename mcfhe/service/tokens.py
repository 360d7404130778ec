"""Bearer tokens from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable

from mcfhe.container import read_file
from mcfhe.errors import ParameterError

MIN_TOKEN_CHARACTERS = 16
_MAX_FILE_BYTES = 1 << 20


class Tokens:
    """The tokens that are let in. Only their digests are kept; nothing prints them."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """ParameterError for no token, or one shorter than 16 characters or with characters outside ``!``..``~``."""
        self._digests: list[bytes] = []
        for number, token in enumerate(tokens, 1):
            if len(token) < MIN_TOKEN_CHARACTERS or any(not "!" <= character <= "~" for character in token):
                raise ParameterError(
                    f"token {number}: {MIN_TOKEN_CHARACTERS} or more printable ASCII characters without spaces "
                    "expected; make one with: openssl rand -hex 32"
                )
            self._digests.append(_digest(token))
        if not self._digests:
            raise ParameterError("tokens: the file holds none; write one a line")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokens:
        """One token a line; empty lines and lines that begin with ``#`` are skipped."""
        try:
            lines = read_file(path, _MAX_FILE_BYTES).decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise ParameterError(f"{path}: tokens must be ASCII") from None
        return cls(line.strip() for line in lines if line.strip() and not line.startswith("#"))

    def __repr__(self) -> str:
        return f"Tokens({len(self._digests)})"

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """ "token-3" for the third token of the file, None for anything that is not a known bearer token.

        Takes the same time for every token of a length: all digests are compared, none by an early exit.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        found = None
        for number, digest in enumerate(self._digests, 1):
            if hmac.compare_digest(given, digest):
                found = f"token-{number}"
        return found if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
