"""The engine's bookkeeping: chunks, positions, launches, stop ids, limits. The device is a fake
of a few lines that follows the launch ABI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilecc.diag import TileccError, error
from tilecc.package import Manifest, Region
from tilecc.runtime.abi import MAX_ROWS, step_type
from tilecc.runtime.devices.base import Access, Buffer, Bytes, Launch, Stats
from tilecc.runtime.engine import Engine, chunks_of, stop_ids_of
from tilecc.runtime.report import RunReport
from tilecc.runtime.session import Session

VOCAB = 64
PROMPT = [5, 9, 33, 2, 60, 1, 1, 8, 40, 17, 3]


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "fake",
        "model_file": "fake.py",
        "target": "sm_90a",
        "tilecc_version": "0",
        "config": {"hidden_size": 32, "torch_dtype": "bfloat16"},
        "kernel": "tilecc_fake",
        "source": "kernels/fake.cu",
        "threads": 128,
        "smem_bytes": 1024,
        "default_grid": 2,
        "max_context": 40,
        "max_seqs": 2,
        "vocab": VOCAB,
        "hidden": 32,
        "image_bytes": 256,
        "image": [],
        "workspace_bytes": 64,
        "workspace": [Region("epoch", 0, 64)],
        "kv_bytes": 2 * 40 * 4,
        "tables_bytes": 16,
    }
    return Manifest(**(fields | changes))


class FakeDevice:
    """The "model": next token = (3 * sum of the sequence's tokens so far + position) mod vocab.

    The sum is read back from the KV buffer, so a lost row, a wrong position or a lost cache changes the
    answer. Logits of a row are 1 at its next token, else 0. The first workspace word counts launches.
    """

    name = "fake"
    note = "fake device"

    def __init__(self, m: Manifest) -> None:
        self.manifest, self.grid = m, 2
        self.launches: list[int] = []
        self.rows_seen: list[list[tuple[int, int, int]]] = []
        self.fail_next = False
        self.closed = False

    def host_array(self, nbytes: int) -> Bytes:
        return np.zeros(nbytes, np.uint8)

    def upload(self, name: str, data: Bytes) -> Buffer:
        return Buffer(name, data.size, "read", data)

    def alloc_zeroed(
        self, name: str, nbytes: int, access: Access = "state", regions: tuple[Region, ...] = ()
    ) -> Buffer:
        return Buffer(name, nbytes, access, np.zeros(nbytes, np.uint8), regions)

    def write(self, buffer: Buffer, data: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        buffer.handle[: raw.size] = raw

    def zero(self, buffer: Buffer) -> None:
        buffer.handle[:] = 0

    def download(self, buffer: Buffer, dtype: Any, count: int) -> NDArray[Any]:
        return buffer.handle.view(dtype)[:count].copy()

    def close(self) -> None:
        self.closed = True

    def launch(self, launch: Launch) -> Stats:
        self.launches.append(launch.n_steps)
        launch.workspace.handle.view(np.uint32)[0] += 1
        if self.fail_next:
            self.fail_next = False
            raise error("TC0404", "stopped")
        m = self.manifest
        kv = launch.kv.handle.view(np.int32).reshape(m.max_seqs, m.max_context)
        out = launch.tokens_out.handle.view(np.int32).reshape(-1, MAX_ROWS)
        stop = set(launch.stop_ids.handle.view(np.int32)[: launch.n_stop].tolist())
        table = launch.steps.handle.view(step_type())
        previous = None
        for s in range(launch.n_steps):
            rows = [tuple(int(v) for v in r)[:3] for r in table[s]["rows"][: table[s]["n_rows"]]]
            rows = [(previous if t == -1 else t, p, q) for t, p, q in rows]
            self.rows_seen.append(rows)
            for token, position, seq in rows:
                kv[seq, position] = token
            for i, (_, position, seq) in enumerate(rows):
                out[s, i] = (3 * int(kv[seq, : position + 1].sum()) + position) % m.vocab
                if launch.logits is not None:
                    logits = launch.logits.handle.view(np.float32).reshape(-1, MAX_ROWS, m.vocab)
                    logits[s, i] = np.eye(m.vocab, dtype=np.float32)[out[s, i]]
            previous = int(out[s, len(rows) - 1])
            if previous in stop:
                break
        return {"switches": 10, "peak_bytes": 100 * launch.n_steps}


def expected(prompt: list[int], count: int) -> list[int]:
    """The fake model's continuation, computed the plain way."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append((3 * sum(tokens) + len(tokens) - 1) % VOCAB)
    return tokens[len(prompt) :]


def engine(steps_per_launch: int = 4, **changes: object) -> tuple[Engine, FakeDevice]:
    m = manifest(**changes)
    device = FakeDevice(m)
    image = device.upload("image", device.host_array(m.image_bytes))
    tables = device.upload("tables", device.host_array(m.tables_bytes))
    return Engine(m, device, Session(m, device, image, tables, steps_per_launch)), device


def code_of(caught: pytest.ExceptionInfo[TileccError]) -> str:
    return caught.value.diagnostics[0].code


@pytest.mark.parametrize("steps_per_launch", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_generate_is_the_model_for_any_launch_size(steps_per_launch: int, count: int) -> None:
    opened, device = engine(steps_per_launch)
    seen: list[int] = []
    result = opened.generate(PROMPT, count, seen.append)
    assert result.tokens == seen == expected(PROMPT, count)
    assert (result.stopped, result.prompt_tokens) == ("length", len(PROMPT))
    assert result.stats["steps"] == 2 + count - 1 and result.stats["rows"] == len(PROMPT) + count - 1
    assert result.stats["launches"] == len(device.launches) and max(device.launches) <= steps_per_launch
    # Every position is fed exactly once, in order; the last new token is not fed.
    fed = [row for rows in device.rows_seen for row in rows]
    assert [p for _, p, _ in fed] == list(range(len(PROMPT) + count - 1))
    assert [t for t, _, _ in fed] == PROMPT + result.tokens[:-1]


def test_stop_token_ends_the_answer_and_is_not_part_of_it() -> None:
    full = expected(PROMPT, 12)
    for at in (0, 1, 5, 9):
        stop = full[at]
        first = full.index(stop)
        opened, device = engine(4)
        result = opened.generate(PROMPT, 12, stop_ids=[stop, 63 if stop != 63 else 62])
        assert result.tokens == full[:first] and result.stopped == "stop"
        # The device stops by itself: no step ran after the one that found the stop token.
        assert len(device.rows_seen) == 2 + first


def test_a_stop_id_predicted_inside_the_prompt_does_not_stop_the_prefill() -> None:
    inside = expected(PROMPT[:8], 1)[0]
    assert inside not in expected(PROMPT, 6)
    opened, _ = engine(4)
    assert opened.generate(PROMPT, 6, stop_ids=[inside]).tokens == expected(PROMPT, 6)


def test_a_second_prompt_starts_from_position_zero_and_slots_do_not_mix() -> None:
    opened, _ = engine(4)
    opened.generate(PROMPT, 5)
    assert opened.generate(PROMPT[:3], 4).tokens == expected(PROMPT[:3], 4)
    opened.generate(PROMPT, 5, seq=1)
    assert opened.generate([1], 4).tokens == expected([1], 4)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_logits_cover_every_position_once(chunk: int) -> None:
    opened, device = engine(3)
    values = opened.logits(PROMPT, chunk)
    assert values.shape == (len(PROMPT), VOCAB)
    want = [expected(PROMPT[: i + 1], 1)[0] for i in range(len(PROMPT))]
    assert values.argmax(1).tolist() == want and (values.sum(1) == 1).all()
    assert len(device.rows_seen) == -(-len(PROMPT) // chunk)


def test_run_steps_takes_any_rows_in_any_columns() -> None:
    opened, _ = engine(2)
    a, b = PROMPT[:4], PROMPT[4:8]
    steps = [[(b[0], 0, 1), (a[1], 1, 0), (a[0], 0, 0)], [(a[2], 2, 0)], [(a[3], 3, 0), (b[1], 1, 1)]]
    tokens, logits = opened.run_steps(steps)
    assert logits is not None and [len(v) for v in logits] == [3, 1, 2]
    assert tokens[0, :4].tolist() == [*expected(b[:1], 1), *expected(a[:2], 1), *expected(a[:1], 1), -1]
    assert tokens[2, :2].tolist() == [*expected(a, 1), *expected(b[:2], 1)]
    assert [v.argmax(1).tolist() for v in logits] == [t[t >= 0].tolist() for t in tokens]
    # -1 across a launch border (2 steps per launch) is filled in by the host.
    chain = [[(1, 0, 0)], [(-1, 1, 0)], [(-1, 2, 0)], [(-1, 3, 0)], [(-1, 4, 0)]]
    tokens, none = opened.run_steps(chain, logits=False)
    assert none is None and tokens[:, 0].tolist() == expected([1], 5)


def test_state_is_zeroed_after_an_aborted_launch() -> None:
    opened, device = engine(4)
    opened.generate(PROMPT, 3)
    device.fail_next = True
    with pytest.raises(TileccError) as caught:
        opened.generate(PROMPT, 3)
    assert code_of(caught) == "TC0404"
    assert opened.session.workspace.handle.view(np.uint32)[0] > 1
    assert opened.generate(PROMPT, 3).tokens == expected(PROMPT, 3)
    # Zeroed, then two launches: prefill and decode.
    assert opened.session.workspace.handle.view(np.uint32)[0] == 2


def test_a_workspace_region_can_be_read() -> None:
    opened, device = engine(4)
    opened.generate(PROMPT, 3)
    # The fake counts its launches in the first word.
    assert (
        opened.session.region("epoch")[0] == len(device.launches)
        and opened.session.region("epoch").size == 16
    )
    with pytest.raises(KeyError):
        opened.session.region("nothing")


def test_context_limit_names_both_numbers_and_the_fix() -> None:
    opened, device = engine()
    long = [1] * 41
    for ids, new, needed in [(long, 1, 41), (long, 0, 41), (PROMPT, 31, 41)]:
        with pytest.raises(TileccError) as caught:
            opened.generate(ids, new)
        found = caught.value.diagnostics[0]
        assert found.code == "TC0401" and f"{needed} positions" in found.message and "40" in found.message
        assert any("--max-context" in h for h in found.help)
    assert device.launches == []
    # 11 + 30 - 1 positions fit exactly.
    assert opened.generate(PROMPT, 30).tokens == expected(PROMPT, 30)


@pytest.mark.parametrize("ids", [[], [VOCAB], [3, -1], [2, 999999]])
def test_bad_prompts(ids: list[int]) -> None:
    opened, device = engine()
    for call in (lambda: opened.generate(ids, 2), lambda: opened.logits(ids)):
        with pytest.raises(TileccError) as caught:
            call()
        assert code_of(caught) == "TC0403"
    assert device.launches == []


@pytest.mark.parametrize(
    "steps,code",
    [
        ([[]], "TC0407"),
        ([[(1, 0, 0)] * 9], "TC0407"),
        ([[(1, 0, 0), (2, 0, 0)]], "TC0407"),
        ([[(1, 40, 0)]], "TC0407"),
        ([[(1, 0, 2)]], "TC0407"),
        ([[(-1, 0, 0)]], "TC0403"),
        ([[(1, 0, 0)], [(VOCAB, 1, 0)]], "TC0403"),
    ],
)
def test_bad_rows_are_refused_before_anything_runs(
    steps: list[list[tuple[int, int, int]]], code: str
) -> None:
    opened, device = engine()
    with pytest.raises(TileccError) as caught:
        opened.run_steps(steps)
    assert code_of(caught) == code and device.launches == []


def test_stop_ids_come_from_the_checkpoint(tmp_path: Path) -> None:
    assert stop_ids_of(tmp_path, {"eos_token_id": 7}) == (7,)
    assert stop_ids_of(tmp_path, {}) == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert stop_ids_of(tmp_path, {"eos_token_id": 7}) == (3, 4)


def test_chunks_of() -> None:
    assert chunks_of([9, 8, 7], 2, 1) == [[(9, 0, 1), (8, 1, 1)], [(7, 2, 1)]]


def test_report_gives_no_speed_without_its_note(tmp_path: Path) -> None:
    opened, _ = engine()
    report = RunReport.of(opened, opened.generate(PROMPT, 6), "pkg", "ckpt")
    text, data = report.save(tmp_path)
    speeds = [line for line in text.read_text().splitlines() if "tok/s" in line]
    assert len(speeds) == 1 and "(fake device)" in speeds[0]
    read = json.loads(data.read_text())
    assert read["tokens"] == expected(PROMPT, 6) and read["note"] == "fake device"
    assert read["tokens_per_second"] == pytest.approx(5 / (report.seconds - report.prefill_seconds))
    one = RunReport.of(opened, opened.generate(PROMPT, 1), "pkg", "ckpt")
    assert one.tokens_per_second is None and "tok/s" not in one.text()
