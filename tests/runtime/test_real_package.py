"""The engine with the compiler's own kernel and the committed checkpoint, on the emulator (and on a GPU)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilecc.diag import TileccError
from tilecc.package import Manifest
from tilecc.runtime.devices.reference import Reference
from tilecc.runtime.engine import Engine
from tilecc.runtime.report import RunReport
from tilecc.runtime.text import Tokenizer

MODELS = Path(__file__).parents[2] / "models"
CHECKPOINT = MODELS / "mimo_tiny"
TEXT = "def read_lines(path):\n    with open(path) as f:\n        return"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


DEVICES = [
    "emulator",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="no GPU")]),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tilecc.emit.compiler import compile_model

    out = tmp_path_factory.mktemp("package") / "mimo_tiny"
    config = json.loads((CHECKPOINT / "config.json").read_text())
    compile_model(
        MODELS / "mimo_tiny.py", target="sm_90a", out=out, config=config, max_context=128, max_seqs=2
    )
    return out


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return Tokenizer(CHECKPOINT).encode(TEXT)


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, package: Path) -> Engine:
    return Engine.open(package, CHECKPOINT, device=request.param)


def test_logits_and_tokens_are_the_model_s(engine: Engine, ids: list[int]) -> None:
    """1e-2 of the largest logit (tests/e2e has the tight bound): the order of summation differs, so a value
    on a rounding border may land on
    the neighbouring bf16 number, 2^-8 apart, which later layers spread."""
    reference = Reference(MODELS / "mimo_tiny.py", CHECKPOINT)
    want = reference.logits(ids)
    got = engine.logits(ids)
    scale = np.abs(want).max()
    assert scale > 1 and np.abs(got - want).max() <= 1e-2 * scale
    seen: list[int] = []
    result = engine.generate(ids, 12, seen.append, stop_ids=())
    forced = reference.logits(ids + result.tokens[:-1])[len(ids) - 1 :]
    margin = np.sort(forced, 1)[:, -1] - np.sort(forced, 1)[:, -2]
    for token, row, clear in zip(result.tokens, forced, margin > 6e-3 * scale, strict=True):
        assert token == row.argmax() or not clear
    assert seen == result.tokens and (margin > 6e-3 * scale).sum() >= 6


def test_launch_size_chunk_size_and_history_leave_the_bits_alone(engine: Engine, ids: list[int]) -> None:
    first = engine.logits(ids)
    tokens = engine.generate(ids, 10, stop_ids=()).tokens
    # Teacher forcing of the answer gives the decode steps' own tokens, bit for bit the same arithmetic.
    forced = engine.logits(ids + tokens)
    assert forced[len(ids) - 1 : -1].argmax(1).tolist() == tokens
    np.testing.assert_array_equal(forced[: len(ids)], first)
    np.testing.assert_array_equal(engine.logits(ids, chunk=3), first)
    before = engine.session.steps_per_launch
    try:
        engine.session.steps_per_launch = 3
        assert engine.generate(ids, 10, stop_ids=()).tokens == tokens
    finally:
        engine.session.steps_per_launch = before


def test_two_sequences_in_any_columns(engine: Engine, ids: list[int]) -> None:
    a, b = ids[:6], ids[6:10]
    alone_a, alone_b = engine.logits(a), engine.logits(b, seq=1)
    steps = [
        [(b[1], 1, 1), (a[2], 2, 0), (a[0], 0, 0), (b[0], 0, 1), (a[1], 1, 0)],
        [(a[3], 3, 0), (b[2], 2, 1)],
        [(b[3], 3, 1), (a[5], 5, 0), (a[4], 4, 0)],
    ]
    _, logits = engine.run_steps(steps)
    assert logits is not None
    for rows, values in zip(steps, logits, strict=True):
        for (_, position, seq), value in zip(rows, values, strict=True):
            np.testing.assert_array_equal(value, (alone_a, alone_b)[seq][position])


def test_stop_token_of_the_device(engine: Engine, ids: list[int]) -> None:
    tokens = engine.generate(ids, 8, stop_ids=()).tokens
    full = engine.generate(ids, 8, stop_ids=())
    # Three times, so that the epoch differs: the steps behind the stop token do not run in any launch.
    for at in (4, 2, 4):
        first = tokens.index(tokens[at])
        result = engine.generate(ids, 8, stop_ids=[tokens[at]])
        assert result.tokens == tokens[:first] and result.stopped == "stop"
        assert result.stats["steps"] == full.stats["steps"] - (7 - first)


def test_report_of_a_real_run(engine: Engine, ids: list[int], package: Path, tmp_path: Path) -> None:
    report = RunReport.of(engine, engine.generate(ids, 4, stop_ids=()), package, CHECKPOINT)
    text = report.text()
    assert engine.device.note in text and text.count("tok/s") == 1
    assert json.loads(report.to_json())["image_bytes"] == engine.manifest.image_bytes > 10_000_000


def code_and_text(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(TileccError) as caught:
        call()
    found = caught.value.diagnostics[0]
    return found.code, " ".join([found.message, *found.notes, *found.help])


def test_unknown_device(package: Path) -> None:
    code, text = code_and_text(lambda: Engine.open(package, CHECKPOINT, device="emulater"))
    assert code == "TC0406" and "did you mean `emulator`?" in text


def test_package_and_checkpoint_of_different_models(package: Path, tmp_path: Path) -> None:
    for file in CHECKPOINT.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"swa_rope_theta": 5000, "torch_dtype": "float32"})
    )
    code, text = code_and_text(lambda: Engine.open(package, tmp_path))
    assert code == "TC0405" and "swa_rope_theta: package 10000, checkpoint 5000" in text
    assert "torch_dtype" not in text


def test_damaged_packages(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    manifest = Manifest.load(copy)
    (copy / "tables.bin").write_bytes(b"short")
    code, text = code_and_text(lambda: Engine.open(copy, CHECKPOINT))
    assert code == "TC0603" and "5 bytes" in text and str(manifest.tables_bytes) in text
    (copy / "tables.bin").unlink()
    code, text = code_and_text(lambda: Engine.open(copy, CHECKPOINT))
    assert code == "TC0603" and "tables.bin" in text


def test_limits(package: Path) -> None:
    assert code_and_text(lambda: Engine.open(package, CHECKPOINT, max_seqs=3))[0] == "TC0407"
    assert code_and_text(lambda: Engine.open(package, CHECKPOINT, grid=0))[0] == "TC0407"
    code, text = code_and_text(lambda: Engine.open(package, CHECKPOINT, schedule="rando"))
    assert code == "TC0407" and "did you mean `random`?" in text


def test_cuda_without_a_gpu_says_so(package: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    code, text = code_and_text(lambda: Engine.open(package, CHECKPOINT, device="cuda"))
    assert code == "TC0402" and "--device emulator" in text
