"""The committed checkpoint, its tokenizer, and the training that made it."""

from __future__ import annotations

import json
import math
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tilecc.models.mimo_tiny import CHECKPOINT, decode_step
from tilecc.weights import formats
from tilecc.weights.checkpoint import Checkpoint

from .helpers import ROOT, TINY

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """examples/train_tiny/train.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "train_tiny"))
    before = set(sys.modules)
    import train

    yield train
    for name in set(sys.modules) - before:
        if name in ("train", "corpus", "fake_quant", "muon"):
            del sys.modules[name]


def test_committed_checkpoint_is_complete_and_small() -> None:
    checkpoint = Checkpoint(CHECKPOINT)
    with torch.device("meta"):
        spec = decode_step().checkpoint_spec()
    assert checkpoint.validate(spec) == []
    stored = {t.name for param in spec.values() for t in param.stored()}
    assert set(checkpoint.names()) == stored
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 14_000_000
    index = json.loads((CHECKPOINT / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == stored


def test_committed_checkpoint_uses_its_formats() -> None:
    """Trained, not degenerate: all 15 MXFP4 values occur, FP8 blocks reach their maximum, no expert is
    dead."""
    checkpoint = Checkpoint(CHECKPOINT)
    for layer in range(1, 8):
        base = f"model.layers.{layer}.mlp."
        codes = formats.mxfp4_unpack(np.asarray(checkpoint.tensor(base + "experts.5.gate_proj.weight")))
        assert len(np.unique(codes)) >= 15
        assert np.ptp(checkpoint.tensor(base + "gate.e_score_correction_bias")) > 0.01
    qkv = checkpoint.tensor("model.layers.2.self_attn.qkv_proj.weight").astype(np.float32)
    scales = checkpoint.tensor("model.layers.2.self_attn.qkv_proj.weight_scale_inv")
    assert scales.shape == (8, 2) and len(np.unique(scales)) > 8
    assert np.abs(qkv).max() == formats.FP8_MAX


def test_tokenizer_round_trips_any_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == TINY["vocab_size"]
    texts = [
        "def f(x):\n\treturn x  # tab, trailing space \n\n\n",
        "é ß 漢字 🙂 \u2028 \x00 \r\n",
        "    x  =  1_000\n" * 3,
        (STDLIB / "textwrap.py").read_text(encoding="utf-8"),
        (STDLIB / "test" / "test_difflib_expect.html").read_text(encoding="utf-8")
        if (STDLIB / "test" / "test_difflib_expect.html").exists()
        else "<a>&nbsp;</a>",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_prompt_has_the_tokens_of_the_same_text_inside_a_file(tokenizer: Tokenizer) -> None:
    """Cutting after a newline does not change the tokens before the cut, as it would with GPT-2's pieces."""
    text = (STDLIB / "heapq.py").read_text(encoding="utf-8")
    whole = tokenizer.encode(text).ids
    for line in (3, 40, 150):
        prompt = "".join(text.splitlines(keepends=True)[:line])
        ids = tokenizer.encode(prompt).ids
        assert whole[: len(ids)] == ids


def test_committed_checkpoint_predicts_held_out_code(tokenizer: Tokenizer, train: ModuleType) -> None:
    """Perplexity of text that training did not see is the recorded one, in float32 and rounded to bf16.

    Every tenth window of the held-out files: 17.3 where all of them give 16.75. Scrambled QKV rows or a wrong
    window give more than 100; another patch release of Python has slightly other files.
    """
    import corpus

    recorded = json.loads((CHECKPOINT / "training.json").read_text())
    assert recorded["held_out_files"] == list(corpus.HELD_OUT)
    held = corpus.encode(tokenizer, corpus.files()[1])
    length = recorded["plan"]["length"]
    every_tenth = [held[i : i + length] for i in range(0, len(held) - length, 10 * length)]
    stream = np.concatenate([*every_tenth, held[:1]])
    step = decode_step().load(CHECKPOINT)
    found = {}
    for step.rounding in ("f32", "bf16"):
        found[step.rounding] = train.perplexity(step, stream, length, "cpu")
    print(found, recorded["held_out_perplexity"])
    assert found["f32"] < 1.2 * recorded["held_out_perplexity"]["quantized_checkpoint"]
    # Half a percent: bf16 activations move single logits by 0.3 % of the largest and average out over tokens.
    assert abs(math.log(found["bf16"] / found["f32"])) < 5e-3


def test_interrupted_training_continues_bit_for_bit(tmp_path: Path, train: ModuleType) -> None:
    """Two steps, save, load, two steps equal four steps; the last two train through the quantised formats."""
    plan = train.Plan(batch=1, length=64, quantize_from=0.5)
    stream = np.random.default_rng(0).integers(0, 4096, 5000).astype(np.uint16)

    def run(trainer: object, until: int) -> None:
        args = Namespace(minutes=0, steps=4, stop_after=until)
        for fraction in train.fractions(args, trainer):
            trainer.step(train.windows(stream, plan, trainer.step_number, "cpu"), fraction)

    whole = train.Trainer(plan, TINY, "cpu")
    run(whole, 4)
    first, second = train.Trainer(plan, TINY, "cpu"), train.Trainer(plan, TINY, "cpu")
    run(first, 2)
    first.save(tmp_path / "state.pt")
    assert second.load(tmp_path / "state.pt") and second.step_number == 2
    run(second, 4)
    assert whole.step_number == second.step_number == 4
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    with pytest.raises(SystemExit, match="another plan"):
        train.Trainer(train.Plan(seed=2), TINY, "cpu").load(tmp_path / "state.pt")


def test_training_learns_and_balances(train: ModuleType) -> None:
    """A stream of period 7 is learned within 12 steps; every weight moves; the bias moves against the
    load."""
    plan = train.Plan(batch=2, length=64, warmup=0.0)
    stream = np.tile(np.arange(7, dtype=np.uint16) * 300, 200)
    trainer = train.Trainer(plan, TINY, "cpu")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    losses = [trainer.step(train.windows(stream, plan, i, "cpu"), i / 12) for i in range(12)]
    assert losses[0] > 7 and losses[-1] < 2
    assert all(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    for index, load in trainer.loads.items():
        bias = trainer.model.model.layers[index].mlp.gate.e_score_correction_bias
        assert abs(float(bias.mean())) < 1e-6 and float(bias[load.argmax()]) < float(bias[load.argmin()])
