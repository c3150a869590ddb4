"""``edgeslim chat PACKAGE``: talks with the language model in a package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["chat"]


def chat(
    package: Annotated[str, typer.Argument(help="An .aar or a .tar.gz of a language model that edgeslim built.")],
    *,
    prompt: Annotated[
        str | None, typer.Option(help="One question, instead of lines from the keyboard or a pipe.", metavar="TEXT")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.", metavar="N")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="0 takes the likeliest word; more varies.", metavar="T")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Draw from words that together have this probability.", metavar="P")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Where the draws begin.", metavar="N")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.", metavar="N")] = 0,
) -> None:
    """Talk with the language model in a package, a line a turn; an empty line or the end of input ends it."""
    from edgeslim.conversation import open_conversation
    from edgeslim.decoders.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    with open_conversation(Path(package), threads=threads) as conversation:
        while True:
            if prompt is None and sys.stdin.isatty():
                typer.echo("> ", nl=False, err=True)
            line = sys.stdin.readline().strip() if prompt is None else prompt
            if not line:
                break
            for piece in conversation.answer(line, max_tokens=max_tokens, sampling=sampling):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
            typer.echo()
            if prompt is not None:
                break
