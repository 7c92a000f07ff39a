"""What can go wrong: refusals of the server by kind, a lost connection, and a task that its agent gives up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KeikoError(Exception):
    """The server refused. `code` is stable; `message` says what is wrong, `hint` what to do."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        details: Mapping[str, Any] | None = None,
        hint: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" + (f" {hint}" if hint else ""))
        self.code = code
        self.message = message
        self.status = status
        self.details: dict[str, Any] = dict(details or {})
        self.hint = hint
        self.request_id = request_id
        self.retry_after = retry_after


class Invalid(KeikoError):
    """The request is malformed (400, 405, 413, 415)."""


class Unauthenticated(KeikoError):
    """Nobody known asks (401)."""


class Forbidden(KeikoError):
    """Known, but may not (403)."""


class NotFound(KeikoError):
    """Not there, or not yours (404)."""


class Conflict(KeikoError):
    """It contradicts the present state (409, 412)."""


class ClaimStale(Conflict):
    """The claim is over: drop the work."""


class Refused(KeikoError):
    """A rule or a schema says no (422)."""


class Limited(KeikoError):
    """Too often (429), also after the repeats."""


class Unavailable(KeikoError):
    """The server, or what lies behind it, cannot answer now (5xx), also after the repeats."""


class Disconnected(KeikoError):
    """No answer came from the server: it is away, or the connection broke. The request may have been carried out."""

    def __init__(self, message: str) -> None:
        super().__init__("DISCONNECTED", message, hint="Check that the server runs and that its address is right.")


class TaskFailed(Exception):
    """Raised in a capability: the task fails with this code and message. With `retryable` another attempt may follow."""

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable


BY_STATUS: dict[int, type[KeikoError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: Invalid,
    409: Conflict,
    412: Conflict,
    413: Invalid,
    415: Invalid,
    422: Refused,
    429: Limited,
}


def refusal(status: int, body: Any, retry_after: float | None) -> KeikoError:
    """The error that an answer stands for. An answer that is not Keiko's gets the code `HTTP_<status>`."""
    envelope = body if isinstance(body, dict) else {}
    error = envelope.get("error")
    error = error if isinstance(error, dict) else {}
    code = str(error.get("code") or f"HTTP_{status}")
    kind = ClaimStale if code == "CLAIM_STALE" else BY_STATUS.get(status, Unavailable if status >= 500 else KeikoError)
    return kind(
        code,
        str(error.get("message") or "Something else than Keiko answered."),
        status=status,
        details=error.get("details"),
        hint=str(error.get("hint") or ""),
        request_id=str((envelope.get("meta") or {}).get("request_id") or ""),
        retry_after=retry_after,
    )
