"""Where nobody gives text: English sentences from the reference manual that Python carries."""

from __future__ import annotations

import re

from edgeslim.datasets.data import Example, rank_content
from edgeslim.errors import BadInputError

__all__ = ["builtin_text"]


def builtin_text(count: int, seed: int) -> tuple[Example, ...]:
    """``count`` different pieces of English from Python's own reference manual: one to four sentences each.

    The same ``seed`` gives the same pieces on one Python version. This is calm technical prose: enough to calibrate
    with, and no measure of quality on anybody's own text.

    Raises:
        BadInputError: this Python carries less text than that.
    """
    pieces = [piece for paragraph in _manual_paragraphs() for piece in _cut_pieces(paragraph, seed)]
    distinct = list(dict.fromkeys(pieces))
    if count > len(distinct):
        raise BadInputError(
            "built-in text",
            f"{count} samples wanted",
            expected=f"at most {len(distinct)}, which is what this Python carries",
            hint="give a file of your own text",
        )
    ranked = sorted(distinct, key=lambda piece: rank_content(piece.encode(), seed))
    return tuple(Example(text=piece) for piece in ranked[:count])


def _manual_paragraphs() -> list[str]:
    from pydoc_data.topics import topics

    paragraphs = []
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            text = " ".join(re.sub(r'["*`]', "", block).split())
            # Prose starts with a capital and ends as a sentence does; what is left out is grammar, tables and code.
            prose = re.match(r"(?!Changed in|New in|Added in)[A-Z][a-z]*\b", text) and text.endswith(".")
            if prose and not re.search(r"::=|>>>|\||[{}_]{2}", text):
                paragraphs.append(text)
    return paragraphs


def _cut_pieces(paragraph: str, seed: int) -> list[str]:
    """Cuts a paragraph into pieces of 1, 1, 1, 2, 3 or 4 sentences, of 4 to 120 words."""
    sentences = re.split(r"(?<=[a-z\])][.!?]) (?=[A-Z])", paragraph)
    pieces = []
    while sentences:
        length = (1, 1, 1, 2, 3, 4)[rank_content(sentences[0].encode(), seed)[0] % 6]
        pieces.append(" ".join(sentences[:length]))
        sentences = sentences[length:]
    return [piece for piece in pieces if 4 <= len(piece.split()) <= 120]
