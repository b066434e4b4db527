"""The corpus: the Python standard library of the running interpreter, and a byte-level BPE tokenizer trained
on it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tilecc.weights.checkpoint import write_atomic

HELD_OUT = (
    "bisect.py",
    "calendar.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "json/decoder.py",
    "json/encoder.py",
    "shlex.py",
    "statistics.py",
    "textwrap.py",
)
"""Files that neither the tokenizer nor the model sees; perplexity is measured on them."""

_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
"""Tests are twice as much text as the library and repeat themselves; encodings and pydoc_data are tables."""

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096

# One token per newline and one piece per run of spaces: a prompt that ends in a newline then has the same
# tokens as the same text inside a file. Digits stay single; names and punctuation take at most one space in
# front.
_PIECES = r"\n| {2,}| ?[A-Za-z_]+| ?[0-9]| ?[^\sA-Za-z0-9_]+|\s"


def files() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(training files, held-out files), each a list of (path inside the library, text), sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    train, held = [], []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            if not name.endswith(".py") or name.startswith("_sysconfigdata"):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a handful of files are in other encodings on purpose
                continue
            (held if inside in HELD_OUT else train).append((inside, text))
    return sorted(train), sorted(held)


def digest(entries: list[tuple[str, str]]) -> str:
    """SHA-256 over paths and texts, to record which interpreter's library was used."""
    total = hashlib.sha256()
    for path, text in entries:
        total.update(path.encode() + b"\0" + text.encode() + b"\0")
    return total.hexdigest()


def train_tokenizer(entries: list[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE of ``VOCABULARY`` tokens; every text encodes and decodes back exactly.
    Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in entries), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, entries: list[tuple[str, str]]) -> NDArray[np.uint16]:
    """All texts as one token stream, each followed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts = [
        np.array([*e.ids, end], np.uint16) for e in tokenizer.encode_batch([text for _, text in entries])
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Corpus:
    """Token streams u16 and where they came from."""

    tokenizer: Tokenizer
    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    origin: dict[str, str | int]
    """Python version, SHA-256 and number of the training files."""


def prepare(work: Path) -> Corpus:
    """Tokenizer and token streams, made once per work folder and then read back from it."""
    vocabulary, streams = work / "tokenizer.json", work / "tokens.npz"
    if not streams.exists():
        work.mkdir(parents=True, exist_ok=True)
        train, held = files()
        tokenizer = train_tokenizer(train)
        origin = {"python": sys.version.split()[0], "sha256": digest(train), "files": len(train)}
        data = io.BytesIO()
        np.savez(
            data,
            train=encode(tokenizer, train),
            held_out=encode(tokenizer, held),
            origin=np.array(json.dumps(origin)),
        )
        write_atomic(vocabulary, [tokenizer.to_str(pretty=True).encode()])
        write_atomic(streams, [data.getvalue()])
    loaded = np.load(streams)
    return Corpus(
        Tokenizer.from_file(str(vocabulary)),
        loaded["train"],
        loaded["held_out"],
        json.loads(str(loaded["origin"])),
    )
