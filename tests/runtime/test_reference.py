"""The reference device and the tokenizer, on the committed checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tilecc.diag import TileccError
from tilecc.runtime.devices.reference import Reference, reference_generate, reference_logits
from tilecc.runtime.text import TextStream, Tokenizer

MODELS = Path(__file__).parents[2] / "models"
CHECKPOINT = MODELS / "mimo_tiny"
FILE = MODELS / "mimo_tiny.py"
TEXT = "def read_file(path):\n    # données: naïve → ✓\n    "


def test_generate_agrees_with_teacher_forcing_and_chunks_do_not_matter() -> None:
    reference = Reference(FILE, CHECKPOINT)
    ids = Tokenizer(CHECKPOINT).encode("class Reader:\n    def __init__(self, path")
    seen: list[int] = []
    result = reference.generate(ids, 6, seen.append, stop_ids=())
    assert result.tokens == seen and len(seen) == 6 and result.stats["steps"] == -(-len(ids) // 8) + 5
    logits = reference.logits(ids + seen)
    assert logits.shape == (len(ids) + 6, reference.vocab)
    assert logits[len(ids) - 1 : -1].argmax(1).tolist() == seen
    # Another row count per step changes the order of summation inside torch only.
    np.testing.assert_allclose(
        reference.logits(ids, chunk=3), logits[: len(ids)], atol=5e-2 * abs(logits).max()
    )
    assert reference_generate(FILE, CHECKPOINT, ids, 6).tokens[:1] == seen[:1]
    stopped = reference.generate(ids, 6, stop_ids=[seen[2]])
    assert stopped.tokens == seen[: seen.index(seen[2])] and stopped.stopped == "stop"


def test_rounding_modes_differ_a_little() -> None:
    ids = [5, 90, 300, 17, 8, 448]
    rounded, exact = (reference_logits(FILE, CHECKPOINT, ids, mode) for mode in ("bf16", "f32"))
    difference = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("ids,code", [([], "TC0403"), ([4, 10**6], "TC0403"), ([-1], "TC0403")])
def test_bad_prompts(ids: list[int], code: str) -> None:
    with pytest.raises(TileccError, match=code):
        Reference(FILE, CHECKPOINT).logits(ids)


@pytest.mark.parametrize(
    "text,code",
    [(None, "TC0101"), ("x = 1\n", "TC0102"), ("raise KeyError('no')\n", "TC0103")],
)
def test_bad_model_files(tmp_path: Path, text: str | None, code: str) -> None:
    file = tmp_path / "model.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(TileccError, match=code):
        Reference(file, CHECKPOINT)


def test_text_comes_back_also_token_by_token() -> None:
    tokenizer = Tokenizer(CHECKPOINT)
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 5 and tokenizer.decode(ids) == TEXT
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_missing_and_damaged_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TileccError, match="TC0408"):
        Tokenizer(tmp_path)
    shutil.copy(CHECKPOINT / "config.json", tmp_path / "tokenizer.json")
    with pytest.raises(TileccError, match="TC0408"):
        Tokenizer(tmp_path)
