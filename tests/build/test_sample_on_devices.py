"""The real devices and the real engine, with the kernel of sample.cu: build, launch, KV, stop, watchdog."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilecc.diag import TileccError
from tilecc.runtime.engine import Engine
from tilecc.weights.checkpoint import write_checkpoint

VOCAB, CONTEXT = 64, 40
PROMPT = [5, 9, 33, 2, 60, 1, 1, 8, 40, 17, 3]
ROOT = Path(__file__).parents[2]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


DEVICES = [
    "emulator",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="no GPU")]),
]


def expected(prompt: list[int], count: int) -> list[int]:
    """What sample.cu computes, the plain way."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append((3 * sum(tokens) + len(tokens) - 1) % VOCAB)
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def directories(
    make_package: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sample")
    write_checkpoint(root / "checkpoint", {"eos_token_id": VOCAB - 1}, {"x": np.zeros(4, np.float32)})
    return make_package(root / "package"), root / "checkpoint"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grid", [1, 3, None])
def test_generate_and_logits(directories: tuple[Path, Path], device: str, grid: int | None) -> None:
    with Engine.open(*directories, device=device, grid=grid) as engine:
        result = engine.generate(PROMPT, 20, stop_ids=())
        assert result.tokens == expected(PROMPT, 20)
        # The counters in the workspace continue: a second prompt, another sequence.
        assert engine.generate(PROMPT[:3], 9, stop_ids=(), seq=1).tokens == expected(PROMPT[:3], 9)
        stop = result.tokens[5]
        stopped = engine.generate(PROMPT, 20, stop_ids=[stop])
        assert stopped.tokens == result.tokens[: result.tokens.index(stop)] and stopped.stopped == "stop"
        values = engine.logits(PROMPT + result.tokens[:-1])
        assert values.argmax(1)[len(PROMPT) - 1 :].tolist() == result.tokens and (values.sum(1) == 1).all()
        assert engine.stop_ids == (VOCAB - 1,) and engine.device.grid == (grid or engine.device.grid)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_two_sequences_in_one_step(directories: tuple[Path, Path], device: str) -> None:
    with Engine.open(*directories, device=device, grid=2) as engine:
        a, b = PROMPT[:3], PROMPT[3:6]
        tokens, logits = engine.run_steps(
            [[(b[0], 0, 1), (a[0], 0, 0), (a[1], 1, 0)], [(a[2], 2, 0), (b[1], 1, 1)]]
        )
        assert tokens[0, :3].tolist() == [*expected(b[:1], 1), *expected(a[:1], 1), *expected(a[:2], 1)]
        assert (
            tokens[1, :2].tolist() == [*expected(a, 1), *expected(b[:2], 1)] and (tokens[1, 2:] == -1).all()
        )
        assert logits is not None and [v.shape for v in logits] == [(3, VOCAB), (2, VOCAB)]


HANG = """
import sys
from dataclasses import replace
from tilecc.diag import TileccError
from tilecc.runtime.engine import Engine
engine = Engine.open(sys.argv[1], sys.argv[2], device=sys.argv[3], grid=2)
plain = engine.device.launch
engine.device.launch = lambda launch: plain(replace(launch, flags=1))
try:
    engine.generate([1, 2, 3], 2)
except TileccError as caught:
    found = caught.diagnostics[0]
    print(found.code, found.message, *found.notes, sep="\\n")
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_wait_that_never_ends_is_reported(directories: tuple[Path, Path], device: str) -> None:
    """flags = 1 makes CTA 0 of sample.cu wait for one arrival more than there are. In a process of its own: a
    GPU's context does not survive the trap."""
    command = [sys.executable, "-c", HANG, *map(str, directories), device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.startswith("TC0404\n"), done.stdout + done.stderr
    if device == "cuda":
        assert "CTA 0, warp 0, role 1, op 2, layer 3, item 4" in done.stdout
        assert "expected value 3, seen 2" in done.stdout
    else:
        assert "finished" in done.stdout and "deadlock" in done.stdout.lower()


@pytest.mark.parametrize("device", DEVICES)
def test_a_grid_that_cannot_be(directories: tuple[Path, Path], device: str) -> None:
    for grid in (0, 100_000):
        with pytest.raises(TileccError, match="TC0407"):
            Engine.open(*directories, device=device, grid=grid)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no GPU")
def test_tvm_ffi_launch_on_the_callers_stream(directories: tuple[Path, Path]) -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    import torch

    from tilecc.build.nvcc import build_cuda
    from tilecc.runtime.abi import pack_steps

    library = tvm_ffi.load_module(build_cuda(directories[0]).library)
    assert library.sample_occupancy() >= torch.cuda.get_device_properties(0).multi_processor_count

    def made(count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(count, dtype=dtype, device="cuda")

    image, tables, kv, workspace = (made(n, torch.uint8) for n in (256, 16, 320, 384))
    steps = torch.from_numpy(pack_steps([[(7, 0, 0)], [(-1, 1, 0)], [(-1, 2, 0)]]).view(np.int32)).cuda()
    tokens, stop, logits = made(24), made(1), made(3 * 8 * VOCAB, torch.float32)
    status = torch.zeros(64, dtype=torch.int32).pin_memory()
    arguments = [image, tables, kv, workspace, steps, tokens, logits, stop, status, 3, 0, 0, 5]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        library.sample_launch(*arguments)
    stream.synchronize()
    assert tokens.view(3, 8)[:, 0].tolist() == expected([7], 3)
    assert logits.view(3, 8, VOCAB)[:, 0].argmax(1).tolist() == expected([7], 3)
    # Without logits, captured into a graph and replayed.
    arguments[6] = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.sample_launch(*arguments)
    tokens.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert tokens.view(3, 8)[:, 0].tolist() == expected([7], 3)
    with pytest.raises(ValueError, match="`kv` has 100 elements, 320 are needed"):
        library.sample_launch(image, tables, kv[:100], *arguments[3:])
    with pytest.raises(ValueError, match="cannot be resident at once"):
        library.sample_launch(*arguments[:12], 1 << 18)
