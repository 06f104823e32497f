"""From the texts of a request to token ids: the work of a tokenizer, done in the worker's thread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.models.text.chat import rendered
from exitlens.models.text.tokens import encoded
from exitlens.server.replies import Refusal
from exitlens.server.schema import ChatRequest, CompletionRequest

__all__ = ["chat_ids", "completion_ids"]

# Options of apply_chat_template that a request may not set: they decide what comes back, not what is written.
_OURS = {"tokenize", "return_tensors", "return_dict", "add_generation_prompt", "continue_final_message", "conversation"}
_LONGEST: dict[int, int] = {}
_OURS |= {"messages", "chat_template", "tokenizer_kwargs", "padding", "truncation", "max_length", "documents", "tools"}


def completion_ids(lm: LayeredModel, request: CompletionRequest, most: int) -> list[list[int]]:
    """Token ids of each prompt.

    The text of a completion is the caller's own prompt: special tokens written in it are special tokens.

    Args:
        lm: The model.
        request: Its prompts are texts or ids.
        most: Tokens of a prompt at most.

    Returns:
        Ids, a list a prompt.

    Raises:
        Refusal: Ids out of the vocabulary, and what cannot fit.
    """
    found: list[list[int]] = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            check_length(lm, len(prompt), most)
            found.append(_encoded(lm, prompt))
        elif all(0 <= i < lm.vocab_size for i in prompt):
            found.append(list(prompt))
        else:
            raise Refusal(400, f"prompt has token ids outside 0..{lm.vocab_size - 1}", param="prompt")
    return found


def chat_ids(lm: LayeredModel, request: ChatRequest, most: int) -> list[int]:
    """Token ids of a conversation by the model's chat template, ready for the reply, or for the rest of the last turn.

    Args:
        lm: The model.
        request: The turns, and settings of the template.
        most: Tokens of the prompt at most.

    Returns:
        The ids.

    Raises:
        Refusal: A model without a template, what its template refuses, and what cannot fit.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        raise Refusal(400, f"{lm.name} has no chat template: use /v1/completions", param="messages")
    check_length(lm, sum(len(turn.text) for turn in request.messages), most)
    options = dict(request.chat_template_kwargs or {})
    taken = sorted(_OURS & options.keys())
    if taken:
        name = "chat_template_kwargs"
        raise Refusal(400, f"{name} sets {taken[0]!r}, which is not a request's to set: leave it out", param=name)
    turns = [turn.as_message for turn in request.messages]
    # An assistant's turn at the end is the beginning of the reply.
    options |= (
        {"continue_final_message": True, "add_generation_prompt": False}
        if turns[-1]["role"] == "assistant"
        else {"add_generation_prompt": True}
    )
    try:
        return _with_text_as_text(lm, turns, options)
    except InputError as error:
        raise Refusal(400, str(error), param="messages") from None


def check_length(lm: LayeredModel, characters: int, most: int) -> None:
    """Refuse by length alone what cannot fit, so that nobody waits for a tokenizer: each token has a longest length."""
    longest = _longest_token(lm)
    if characters > longest * most:
        raise Refusal(
            400,
            f"the prompt has {characters} characters: at most {most} tokens are taken, of {longest} characters at most",
            "context_length_exceeded",
        )


def _longest_token(lm: LayeredModel) -> int:
    """Characters of the longest token, or more: a vocabulary writes a token with at least a letter a byte."""
    key = id(lm.tokenizer)
    if key not in _LONGEST:
        _LONGEST.clear()  # one model a server
        _LONGEST[key] = max(map(len, lm.tokenizer.get_vocab()), default=1)
    return _LONGEST[key]


def _encoded(lm: LayeredModel, text: str) -> list[int]:
    try:
        return lm.encode(text)
    except InputError as error:
        raise Refusal(400, str(error), param="prompt") from None


def _with_text_as_text(lm: LayeredModel, turns: Sequence[dict[str, str]], options: dict[str, Any]) -> list[int]:
    """The template's own special tokens are control, the same letters in a turn's content are text.

    Contents without such letters, nearly all, are tokenised with the template in one piece, as everywhere else.
    """
    tokenizer = lm.tokenizer
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    hostile = [any(name in turn["content"] for name in special) for turn in turns]
    if not any(hostile):
        ids: list[int] = rendered(lm, turns, **options)
        return ids
    # Where it matters, such a content is held out of the template by a mark of private characters and tokenised alone.
    mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in turn["content"] for turn in turns))
    marked = [{**turn, "content": f"{mark}{i}{mark}"} if hostile[i] else turn for i, turn in enumerate(turns)]
    text = rendered(lm, marked, tokenize=False, **options)
    ids = []
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for place, part in enumerate(re.split(f"{mark}(\\d+){mark}", text)):
        if place % 2 == 0:
            ids += encoded(tokenizer, part, False, lm.name)
            continue
        said = turns[int(part)]["content"]
        content = encoded(tokenizer, said, False, lm.name, split_special_tokens=True)
        if control & set(content):
            raise InputError("a turn holds a special token, which this tokenizer cannot read as text")
        ids += content
    return ids
