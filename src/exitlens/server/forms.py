"""The shape of answers at the two addresses, whole and streamed."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from exitlens.server.jobs import Answer, Usage
from exitlens.server.logprobs import as_chat, as_completion
from exitlens.server.replies import Refusal, error_body

__all__ = ["ChatForm", "CompletionForm", "Form", "event", "failure"]


def event(value: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def failure(refusal: Refusal) -> str:
    """The event with which a stream ends that cannot go on."""
    return event(error_body(refusal))


class Form(ABC):
    """The shape of answers at one address. ``top``: alternatives a token, where log-probabilities are asked for."""

    whole_kind, streamed_kind, prefix = "", "", ""

    def __init__(self, model: str, top: int) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._top = top

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """All choices in one reply."""
        choices = [self._choice(answer, finished=True) for answer in answers]
        return {**self._head, "object": self.whole_kind, "choices": choices, "usage": usage.as_json()}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What comes before the first piece of choice ``index``."""
        del index
        return []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A piece of text of one choice."""
        return self._chunk(self._delta(index, text, None))

    def end(self, answer: Answer) -> dict[str, Any]:
        """How a choice ended; its log-probabilities, where asked for, come here, all at once."""
        last = self._delta(answer.index, "", answer.finish)
        return self._chunk({**last, "logprobs": self._logprobs(answer)})

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last event of a stream that asked for it."""
        return {**self._head, "object": self.streamed_kind, "choices": [], "usage": usage.as_json()}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": self.streamed_kind, "choices": [choice]}

    @abstractmethod
    def _choice(self, answer: Answer, *, finished: bool) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, answer: Answer) -> dict[str, Any] | None: ...


class CompletionForm(Form):
    """``/v1/completions``."""

    whole_kind, streamed_kind, prefix = "text_completion", "text_completion", "cmpl"

    def _choice(self, answer: Answer, *, finished: bool) -> dict[str, Any]:
        plain = self._delta(answer.index, answer.text, answer.finish if finished else None)
        return {**plain, "logprobs": self._logprobs(answer)}

    def _delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        return None if answer.logprobs is None else as_completion(answer.logprobs, self._top)


class ChatForm(Form):
    """``/v1/chat/completions``."""

    whole_kind, streamed_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, index: int) -> list[dict[str, Any]]:
        """See :class:`Form`."""
        return [self._chunk({**self._delta(index, "", None), "delta": {"role": "assistant", "content": ""}})]

    def _choice(self, answer: Answer, *, finished: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text}
        finish = answer.finish if finished else None
        return {"index": answer.index, "message": message, "finish_reason": finish, "logprobs": self._logprobs(answer)}

    def _delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish, "logprobs": None}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        return None if answer.logprobs is None else as_chat(answer.logprobs)
