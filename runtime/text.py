"""Text to tokens and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tilecc.diag import Span, error


class Tokenizer:
    """``tokenizer.json`` of a checkpoint. Raises TC0408 when there is none or it cannot be read."""

    def __init__(self, checkpoint_dir: Path | str) -> None:
        path = Path(checkpoint_dir) / "tokenizer.json"
        if not path.is_file():
            raise error(
                "TC0408",
                "the checkpoint has no `tokenizer.json`",
                span=Span(str(checkpoint_dir)),
                help="give token ids instead of text, or put the model's tokenizer.json there",
            )
        # Imported here: `--help` and runs by token ids need no tokenizer.
        from tokenizers import Tokenizer as Loaded

        try:
            self._tokenizer = Loaded.from_file(str(path))
        except Exception as reason:
            raise error(
                "TC0408", "`tokenizer.json` cannot be read", span=Span(str(path)), note=str(reason)
            ) from None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, without added special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


class TextStream:
    """Turns a stream of tokens into a stream of text.

    A character may be cut in two by a token border, so text is held back while it ends in an unfinished
    character. The pieces joined are ``decode(all tokens)``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._shown):
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Return what was still held back."""
        return self._show(self._tokenizer.decode(self._ids))

    def _show(self, text: str) -> str:
        fresh = text[len(self._shown) :]
        self._shown = text
        return fresh
