"""A conversation with a language model in a package: text in, text out, the KV cache kept from turn to turn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeslim.checks.package import check_files, check_weights
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.decoders.chat_format import encode_turn
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate, stream_text
from edgeslim.decoders.sampling import Sampling
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import MODEL_NAME, load_graph
from edgeslim.packaging.unpack import Package, unpack_package
from edgeslim.session import open_runner

__all__ = ["Conversation", "open_conversation"]

TURNS = ("start", "reply", "next")


class Conversation:
    """Turns of a user and a model. Where the model has no chat template, it just goes on with the user's text."""

    def __init__(
        self, decoder: CachedDecoder, tokenizer: Any, chat: Mapping[str, str] | None, end_tokens: tuple[int, ...]
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._chat = chat
        self._end_tokens = end_tokens
        self._tokens: list[int] = []

    def answer(self, text: str, *, max_tokens: int, sampling: Sampling | None = None) -> Iterator[str]:
        """The model's answer to ``text``, in pieces as they come. A special token's name in ``text`` is plain text.

        Raises:
            BadInputError: the conversation is longer than the model's context.
        """
        before, behind = "", ""
        if self._chat is not None:
            before, behind = self._chat["next" if self._tokens else "start"], self._chat["reply"]
        turn = encode_turn(before, text, behind, self._tokenizer)
        self._decoder.check_room(len(self._tokens) + len(turn))
        self._tokens += turn

        def tokens() -> Iterator[int]:
            waiting = self._tokens[self._decoder.length :]
            for token in generate(
                self._decoder, waiting, end_tokens=self._end_tokens, max_tokens=max_tokens, sampling=sampling
            ):
                self._tokens.append(token)
                yield token

        yield from stream_text(tokens(), self._tokenizer)


@contextmanager
def open_conversation(path: Path, *, threads: int = 0) -> Iterator[Conversation]:
    """A conversation with the model of the package at ``path``, once all its hashes are right.

    Raises:
        BadInputError: no package, a damaged one, or not of a language model.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-chat-") as scratch:
        package = unpack_package(path, Path(scratch))
        findings = list(check_files(package))
        if not any(finding.verdict == "fail" for finding in findings):
            findings += check_weights(package)
        failed = [finding for finding in findings if finding.verdict == "fail"]
        if failed:
            raise BadInputError(str(path), f"damaged: {failed[0].where}", expected="the hashes of its manifest")
        chat, end_tokens, context = _settings(package)
        assert package.manifest.tokenizer is not None
        load_graph(package.folder / MODEL_NAME)  # refuses external data outside the package
        runner = open_runner(package.folder / MODEL_NAME, threads=threads)
        decoder = CachedDecoder(runner, empty_cache(runner.signature()["inputs"]), context)
        yield Conversation(
            decoder, load_tokenizer(package.folder / package.manifest.tokenizer.folder), chat, end_tokens
        )


def _settings(package: Package) -> tuple[dict[str, str] | None, tuple[int, ...], int | None]:
    """The pieces of the chat template, the tokens that end an answer, and the context, as the manifest has them."""
    task, where = package.manifest.task, f"{package.path}: manifest.json: task"
    if task.get("task") != "causal-lm" or package.manifest.tokenizer is None:
        raise BadInputError(
            where, repr(task.get("task")), expected="causal-lm, and a tokenizer", hint="edgeslim check runs any package"
        )
    chat, ends = task.get("chat"), task.get("end_tokens")
    if not isinstance(ends, list) or not all(type(item) is int for item in ends):
        raise BadInputError(f"{where}: end_tokens", repr(ends)[:100], expected="a list of whole numbers")
    context = task.get("context_tokens")
    if context is not None and (type(context) is not int or context < 1):
        raise BadInputError(f"{where}: context_tokens", repr(context)[:100], expected="a whole number above 0")
    if chat is None:
        return None, tuple(ends), context
    if not isinstance(chat, Mapping) or not all(isinstance(chat.get(key), str) for key in TURNS):
        raise BadInputError(f"{where}: chat", repr(chat)[:100], expected="the texts " + ", ".join(TURNS))
    return {key: str(chat[key]) for key in TURNS}, tuple(ends), context
