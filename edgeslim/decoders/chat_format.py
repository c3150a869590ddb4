"""A chat template rendered beforehand, so that a device needs no template engine.

A conversation of plain turns is ``start`` + user's text + ``reply`` + model's text + ``next`` + user's text + ``reply``
and so on. The three pieces are cut out of what the template makes of marked texts. A template that doesn't work that
way, such as one that changes earlier turns as a conversation goes on, is found by rendering other turns both ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgeslim.errors import BadInputError

__all__ = ["encode_turn", "render_chat", "split_template"]

MARKS = ("first user text", "first model text", "second user text")
TRIED = ("What is 7 times 6?", "42.", "Thank you - and 7 + 6?", "13, of course.", "Good bye!")


def split_template(tokenizer: Any) -> dict[str, str] | None:
    """``start``, ``reply`` and ``next`` of a tokenizer's chat template; ``None`` where it has none.

    Raises:
        BadInputError: the template fails, or can't be written as these three.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    text = _apply(tokenizer, MARKS)
    pieces = []
    for mark in MARKS:
        before, found, text = text.partition(mark)
        if not found:
            raise _unusual(f"a template that leaves out {mark!r}")
        pieces.append(before)
    made = {"start": pieces[0], "reply": pieces[1], "next": pieces[2]}
    if text != made["reply"] or render_chat(made, TRIED) != _apply(tokenizer, TRIED):
        raise _unusual("a template whose turns depend on each other")
    return made


def render_chat(chat: dict[str, str], texts: Sequence[str]) -> str:
    """A conversation of ``texts``, by turns the user's and the model's, up to where the model is to answer."""
    pieces = [chat["start"]]
    for index, text in enumerate(texts):
        pieces += [text, chat["next"] if index % 2 else chat["reply"]]
    return "".join(pieces)


def encode_turn(before: str, text: str, behind: str, tokenizer: Any) -> list[int]:
    """The tokens of a turn: what stands before the user's ``text``, that, and what stands behind it.

    A special token's name counts as one where it lies in ``before`` or ``behind`` as a whole, and is plain text where a
    part of it came from the user.
    """
    names = sorted((str(item) for item in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    added = re.compile("|".join(map(re.escape, names)) if names else "(?!)")
    last = max((found.end() for found in added.finditer(before)), default=0)
    opening = added.search(behind)
    first = len(behind) if opening is None else opening.start()
    pieces = ((before[:last], False), (before[last:] + text + behind[:first], True), (behind[first:], False))
    tokens: list[int] = []
    for piece, plain in pieces:
        if piece:
            found = tokenizer(piece, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
            tokens += [int(token) for token in found]
    return tokens


def _apply(tokenizer: Any, texts: Sequence[str]) -> str:
    turns = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises whatever it likes
        raise _unusual(f"{type(error).__name__}: {str(error)[:200]}") from error


def _unusual(got: str) -> BadInputError:
    return BadInputError("chat template", got, expected="turns of user and model that follow each other as they are")
