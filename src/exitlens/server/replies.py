"""What the server says when it says no, in the form OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

__all__ = ["Refusal", "error_body", "reply"]

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

_ASK_USER = 'Basic realm="exitlens: the token is the password", charset="UTF-8"'


class Refusal(Exception):
    """A request that is not carried out: HTTP ``status`` 4xx or 503, one line with the value and the remedy."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, *, browser: bool = False
    ) -> None:
        """``browser``: a browser that lacks the token may ask its user for it."""
        super().__init__(message)
        self.browser = browser
        self.status, self.message, self.code, self.param = status, message, code, param


def error_body(refusal: Refusal) -> dict[str, Any]:
    """The refusal as clients read it, in a response and in a stream."""
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return {"error": error}


def reply(refusal: Refusal) -> JSONResponse:
    """The refusal as a response."""
    headers = {"Retry-After": "1"} if refusal.status in (429, 503) else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = _ASK_USER if refusal.browser else "Bearer"
    return JSONResponse(error_body(refusal), status_code=refusal.status, headers=headers)
