"""The engine: a package, a checkpoint and a device become something that answers.

``Engine.open`` checks that package and checkpoint belong together, builds the weight image and starts a
session. Prefill and decode are the same kernel: a step of up to ``max_rows`` rows, each row a (token,
position, sequence).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import Span, error
from tilecc.diag.model import nearest
from tilecc.package import Manifest
from tilecc.runtime.abi import PREVIOUS_ARGMAX, Row
from tilecc.runtime.devices.base import Device
from tilecc.runtime.session import MAX_STOP_IDS, Counters, Session
from tilecc.weights.checkpoint import Checkpoint
from tilecc.weights.image import build_image

DEVICES = ("emulator", "cuda")

STEPS_PER_LAUNCH = {"emulator": 8, "cuda": 32}
"""Decode steps of one launch. Tokens reach ``on_token`` launch by launch."""

_NOT_SIZES = frozenset(
    "_name_or_path architectures auto_map bos_token_id dtype eos_token_id initializer_range "
    "max_position_embeddings pad_token_id torch_dtype transformers_version use_cache".split()
)
"""Keys of config.json that do not decide the kernel: they may differ between package and checkpoint."""


@dataclass(frozen=True)
class GenerateResult:
    """``tokens``: the new tokens, without the stop token. ``stopped``: "stop" (a stop id) or "length".

    ``seconds`` is the whole call, ``prefill_seconds`` its part until the first token; ``stats`` sums
    launches, steps, rows and the device's own counts.
    """

    tokens: list[int]
    seconds: float
    stats: dict[str, Any]
    stopped: str = "length"
    prefill_seconds: float = 0.0
    prompt_tokens: int = 0


@dataclass
class Engine:
    """An opened package. Use as a context manager or call :meth:`close`."""

    manifest: Manifest
    device: Device
    session: Session
    stop_ids: tuple[int, ...] = ()
    max_seqs: int = 1
    load_seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        package_dir: Path | str,
        checkpoint_dir: Path | str,
        device: str = "emulator",
        grid: int | None = None,
        seed: int = 0,
        schedule: str = "round_robin",
        max_seqs: int | None = None,
        **emulator: Any,
    ) -> Engine:
        """Load a package and a checkpoint onto a device.

        ``grid``: number of CTAs (default: the device's own choice; results do not depend on it). ``seed``,
        ``schedule`` and ``emulator`` (landing, detect, preempt, lint) steer the emulator's scheduling. Raises
        TC0406 (unknown device), TC0402 (device not usable), TC0405 (package and checkpoint of different
        models), TC0407 (``max_seqs``), TC05xx (compilers), TC06xx (package), TC03xx (checkpoint).
        """
        if device not in DEVICES:
            raise error(
                "TC0406",
                f"unknown device `{device}`",
                note=f"devices that run a package: {', '.join(DEVICES)}; `reference` runs the model file",
                help=nearest(device, DEVICES),
            )
        package = Path(package_dir)
        manifest = Manifest.load(package)
        tables = _tables(package, manifest)
        if max_seqs is not None and not 1 <= max_seqs <= manifest.max_seqs:
            raise error(
                "TC0407", f"{max_seqs} sequences asked for, the package holds 1 to {manifest.max_seqs}"
            )
        checkpoint = Checkpoint(checkpoint_dir)
        _check_config(manifest, checkpoint, package)
        seconds: dict[str, float] = {}

        began = time.perf_counter()
        opened = _open_device(device, package, manifest, grid, seed, schedule, emulator)
        seconds["device"] = time.perf_counter() - began

        began = time.perf_counter()
        image = opened.host_array(manifest.image_bytes)
        build_image(manifest, checkpoint, image)
        on_device = opened.upload("image", image)
        seconds["image"] = time.perf_counter() - began

        stage = opened.host_array(tables.size)
        stage[:] = tables
        session = Session(
            manifest, opened, on_device, opened.upload("tables", stage), STEPS_PER_LAUNCH[device]
        )
        stop_ids = stop_ids_of(checkpoint_dir, checkpoint.config)
        return cls(manifest, opened, session, stop_ids, max_seqs or manifest.max_seqs, seconds)

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        on_token: Callable[[int], None] | None = None,
        stop_ids: Sequence[int] | None = None,
        seq: int = 0,
    ) -> GenerateResult:
        """Continue a prompt greedily by at most ``max_tokens`` tokens in sequence slot ``seq``.

        Prefill runs in steps of ``max_rows`` rows; decode steps of one launch hand their argmax on inside the
        device.
        ``stop_ids`` defaults to the checkpoint's. Raises TC0401 (prompt and new tokens exceed the compiled
        context), TC0403 (empty prompt, token outside the vocabulary).
        """
        prompt = [int(t) for t in prompt_ids]
        stop = tuple(self.stop_ids if stop_ids is None else stop_ids)
        self.check_prompt(prompt, max_tokens)
        before = _snapshot(self.session.counters)
        began = time.perf_counter()
        tokens: list[int] = []
        stopped = "length"
        prefill = 0.0
        if max_tokens > 0:
            steps = chunks_of(prompt, self.manifest.max_rows, seq)
            # No stop ids: inside the prompt the model may well predict one.
            fresh = [int(self.session.run(steps)[-1][len(steps[-1]) - 1])]
            prefill = time.perf_counter() - began
            while True:
                for token in fresh:
                    if token in stop:
                        stopped = "stop"
                        break
                    tokens.append(token)
                    if on_token is not None:
                        on_token(token)
                left = max_tokens - len(tokens)
                if stopped == "stop" or left == 0:
                    break
                # The newest token has no KV yet: it is the first row of the next launch.
                at = len(prompt) + len(tokens) - 1
                count = min(left, self.session.steps_per_launch)
                rows: list[list[Row]] = [[(tokens[-1], at, seq)]]
                rows += [[(PREVIOUS_ARGMAX, at + i, seq)] for i in range(1, count)]
                out = self.session.run(rows, stop_ids=stop)[:, 0]
                fresh = [int(t) for t in out if t >= 0]
        seconds = time.perf_counter() - began
        stats = _difference(_snapshot(self.session.counters), before)
        return GenerateResult(tokens, seconds, stats, stopped, prefill, len(prompt))

    def logits(self, ids: Sequence[int], chunk: int | None = None, seq: int = 0) -> NDArray[np.float32]:
        """Return the logits f32[len(ids), vocab] of a given text, ``chunk`` rows per step (default: as many
        as fit)."""
        tokens = [int(t) for t in ids]
        most = self.manifest.max_rows
        chunk = most if chunk is None else chunk
        if not 1 <= chunk <= most:
            raise error("TC0407", f"{chunk} rows per step asked for, a step takes 1 to {most}")
        self.check_prompt(tokens, 0)
        out = np.empty((len(tokens), self.manifest.vocab), np.float32)

        def keep(step: int, values: NDArray[np.float32]) -> None:
            out[step * chunk : step * chunk + len(values)] = values

        self.session.run(chunks_of(tokens, chunk, seq), keep)
        return out

    def run_steps(
        self, steps: Sequence[Sequence[Row]], logits: bool = True
    ) -> tuple[NDArray[np.int32], list[NDArray[np.float32]] | None]:
        """Run any rows in any columns: ``steps`` of (token, position, sequence).

        Returns tokens i32[steps, max_rows] (argmax per row, -1 where none ran) and, with ``logits``, one
        f32[rows, vocab] per step. KV state carries over from call to call.
        """
        kept: list[NDArray[np.float32]] = [np.empty((0, self.manifest.vocab), np.float32)] * len(steps)

        def keep(step: int, values: NDArray[np.float32]) -> None:
            kept[step] = values.copy()

        tokens = self.session.run(steps, keep if logits else None)
        return tokens, kept if logits else None

    def check_prompt(self, tokens: Sequence[int], max_tokens: int) -> None:
        """Raise TC0401 or TC0403 unless the prompt and ``max_tokens`` new tokens can run."""
        m = self.manifest
        if not tokens:
            raise error("TC0403", "the prompt is empty", help="give at least one token")
        for i, token in enumerate(tokens):
            if not 0 <= token < m.vocab:
                raise error(
                    "TC0403",
                    f"token id {token} (prompt position {i}) is outside the vocabulary of {m.vocab} tokens",
                    help="encode the prompt with the tokenizer of the same checkpoint",
                )
        # The last new token is never fed back, so it needs no position.
        needed = len(tokens) + max(max_tokens - 1, 0)
        if needed > m.max_context:
            raise error(
                "TC0401",
                f"{needed} positions needed, the package was compiled for a context of {m.max_context}",
                note=f"prompt {len(tokens)} tokens, new tokens {max_tokens}",
                help=f"shorten the prompt, or `tilecc compile --max-context {needed}` or more",
            )

    def close(self) -> None:
        """Free the device's memory."""
        self.device.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def chunks_of(tokens: Sequence[int], chunk: int, seq: int = 0) -> list[list[Row]]:
    """Cut a text into steps of ``chunk`` rows at positions 0, 1, 2, ..."""
    rows = [(token, position, seq) for position, token in enumerate(tokens)]
    return [rows[i : i + chunk] for i in range(0, len(rows), chunk)]


def stop_ids_of(checkpoint_dir: Path | str, config: dict[str, Any]) -> tuple[int, ...]:
    """Return the end-of-text ids of generation_config.json, else of config.json (an int or a list)."""
    import json

    found = config.get("eos_token_id")
    generation = Path(checkpoint_dir) / "generation_config.json"
    if generation.is_file():
        found = json.loads(generation.read_text()).get("eos_token_id", found)
    ids = [found] if isinstance(found, int) else list(found or ())
    return tuple(int(i) for i in ids)[:MAX_STOP_IDS]


def _tables(package: Path, manifest: Manifest) -> NDArray[np.uint8]:
    path = package / manifest.tables
    for needed in (path, package / manifest.source):
        if not needed.is_file():
            raise error(
                "TC0603",
                f"the package lacks `{needed.relative_to(package)}`",
                span=Span(str(package)),
                help="compile the model again",
            )
    tables = np.fromfile(path, np.uint8)
    if tables.size != manifest.tables_bytes:
        raise error(
            "TC0603",
            f"`{manifest.tables}` has {tables.size} bytes, the manifest says {manifest.tables_bytes}",
            span=Span(str(path)),
            help="compile the model again",
        )
    return tables


def _check_config(manifest: Manifest, checkpoint: Checkpoint, package: Path) -> None:
    """The checkpoint's own config.json decides sizes; a package of another configuration cannot run it."""
    ours, theirs = manifest.config, checkpoint.config
    shared = sorted((ours.keys() & theirs.keys()) - _NOT_SIZES)
    differing = [k for k in shared if ours[k] != theirs[k]]
    if differing:
        raise error(
            "TC0405",
            f"the package was compiled for another configuration: `{differing[0]}` differs",
            span=Span(str(package)),
            note=[f"{k}: package {_short(ours[k])}, checkpoint {_short(theirs[k])}" for k in differing[:8]],
            help="compile the model with `--config` and the checkpoint's config.json",
        )


def _open_device(
    name: str,
    package: Path,
    manifest: Manifest,
    grid: int | None,
    seed: int,
    schedule: str,
    emulator: dict[str, Any],
) -> Device:
    if name == "cuda":
        from tilecc.runtime.devices.cuda import CudaDevice

        return CudaDevice(package, manifest, grid)
    from tilecc.runtime.devices.emulator import EmulatorDevice

    return EmulatorDevice(package, manifest, grid, seed=seed, schedule=schedule, **emulator)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _snapshot(counters: Counters) -> dict[str, Any]:
    own = {"launches": counters.launches, "steps": counters.steps, "rows": counters.rows}
    return own | {"launch_seconds": counters.seconds} | counters.device


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {k: v if k == "peak_bytes" else v - before.get(k, 0) for k, v in after.items()}
