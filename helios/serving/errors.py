"""What clients are told when something is wrong: status, code, message, parameter.

The only place that knows codes (specification "reliability", 3.0). Messages are ours; what a
library says goes to the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

__all__ = ["ApiError", "from_job", "from_validation", "from_worker", "job_error"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    429: "rate_limit_error",
}
_WORKER_STATUS = {
    "invalid_prompt": 400,
    "invalid_value": 400,
    "chunk_not_kept": 400,
    "invalid_session": 409,
    "no_session": 409,
    "out_of_memory": 503,
    "insufficient_storage": 507,
    "worker_crashed": 503,
    "timeout": 503,
    "not_ready": 503,
    "cancelled": 409,
    "server_shutdown": 503,
    "server_restarted": 503,
}
_JOB_MESSAGES = {
    "cancelled": "The job was cancelled.",
    "worker_crashed": "The worker process died while it made this video; try again.",
    "timeout": "The worker made no progress and was replaced; try again.",
    "server_shutdown": "The server stopped before this video was complete.",
    "server_restarted": "The server was restarted while it made this video.",
    "insufficient_storage": "There is not enough space to store the video.",
    "internal_error": "Something went wrong; the server's log knows more.",
}


class ApiError(Exception):
    """A refusal, ready to be sent.

    Args:
        status: of the HTTP answer.
        code: for programs.
        message: for people, one line.
        param: the field that is wrong.
        headers: to be sent along.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def from_worker(answer: Mapping[str, Any], param: str | None = None) -> ApiError:
    """The refusal of a worker."""
    code = str(answer.get("code", "internal_error"))
    if param is None and code == "invalid_prompt":
        param = "prompt"
    if param is None and code == "invalid_value":
        param = _guessed(str(answer.get("message")))
    return ApiError(_WORKER_STATUS.get(code, 500), code, str(answer.get("message")), param)


def _guessed(message: str) -> str | None:
    """The field that a message of the library begins with."""
    word = message.split(" ", 1)[0].split("=", 1)[0].rstrip(":")
    known = ("size", "steps", "guidance_scale", "amplify_first_chunk", "num_frames", "seconds")
    return {"lora": "loras"}.get(word, word if word in known else None)


def job_error(code: str, message: str | None = None) -> dict[str, str]:
    """The ``error`` of a failed job."""
    return {"code": code, "message": message or _JOB_MESSAGES.get(code, "The job failed.")}


def from_job(error: Mapping[str, str]) -> ApiError:
    """The answer for somebody who waits for a job that failed."""
    return ApiError(_WORKER_STATUS.get(error["code"], 500), error["code"], error["message"])


def from_validation(error: ValidationError, *, skip: int = 0) -> ApiError:
    """The first problem of a message, in our words.

    Args:
        error: what pydantic found.
        skip: leading parts of a path that are not names of fields.
    """
    problems = error.errors(include_url=False, include_input=False)
    for kinds in (("extra_forbidden",), ("missing",), ()):
        for problem in problems:
            if not kinds or problem["type"] in kinds:
                return _problem(problem, skip)
    return ApiError(400, "invalid_value", "the message is not valid")


def _problem(problem: Mapping[str, Any], skip: int) -> ApiError:
    path = problem["loc"][skip:]
    param = _path(path)
    kind, top = problem["type"], str(path[0]) if path else None
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return ApiError(400, "unknown_type", "type is missing or not one of the protocol", "type")
    if kind == "extra_forbidden":
        return ApiError(400, "unknown_parameter", f"unknown parameter {param!r}", param)
    if kind == "missing":
        return ApiError(400, "missing_required_parameter", f"{param} is required", param)
    text = _text(problem)
    if top in ("prompt", "negative_prompt"):
        code = "prompt_too_long" if "at most 4,096" in text else "invalid_prompt"
        return ApiError(400, code, text, top)
    if param is None and "size" in text:
        param = "size"
    return ApiError(400, "invalid_value", f"{param}: {text}" if param else text, param)


def _path(parts: Sequence[Any]) -> str | None:
    """Names of fields; what pydantic adds for unions and functions is left out."""
    names: list[str] = []
    for part in parts:
        if isinstance(part, int):
            names.append(str(part))
        elif part.isidentifier() and part not in ("int", "float", "str", "tuple"):
            names.append(part)
        else:
            break
    return ".".join(names)[:100] or None


def _text(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:300]
