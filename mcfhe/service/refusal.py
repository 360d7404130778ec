"""How a refusal becomes an HTTP status and one JSON line."""

from __future__ import annotations

import json

from starlette.responses import Response

from mcfhe.errors import FormatError, McfheError, MismatchError, ParameterError, UnknownKeyError, WorkerError

# Most specific first. FormatError covers SecretFieldError, ParameterError covers CapacityError.
_STATUS: tuple[tuple[type[McfheError], int], ...] = (
    (UnknownKeyError, 410),
    (MismatchError, 409),
    (FormatError, 400),
    (ParameterError, 422),
    (WorkerError, 503),
)


class Refusal(Exception):
    """A refusal with its HTTP status. ``retry_after_s``: whole seconds after which it is worth trying again."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @staticmethod
    def of(error: McfheError) -> Refusal:
        """The status that belongs to an error of the package; its message is for the client."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 400)
        return Refusal(status, str(error), retry_after_s=1 if status == 503 else None)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """``{"error": message}`` on one line."""
    return Response(json.dumps({"error": message}) + "\n", status, headers, media_type="application/json")
