"""The report of a run: what ran where, how long it took, and what that number means."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilecc.runtime.engine import Engine, GenerateResult


@dataclass(frozen=True)
class RunReport:
    """Facts of one generation. Times in seconds, sizes in bytes."""

    package: str
    checkpoint: str
    model: str
    target: str
    device: str
    grid: int
    note: str
    prompt_tokens: int
    tokens: list[int]
    stopped: str
    seconds: float
    prefill_seconds: float
    load_seconds: dict[str, float]
    image_bytes: int
    kv_bytes: int
    workspace_bytes: int
    stats: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, engine: Engine, result: GenerateResult, package: Path | str, checkpoint: Path | str
    ) -> RunReport:
        """Collect the facts of ``result``."""
        m = engine.manifest
        return cls(
            package=str(package),
            checkpoint=str(checkpoint),
            model=m.name,
            target=m.target,
            device=engine.device.name,
            grid=engine.device.grid,
            note=engine.device.note,
            prompt_tokens=result.prompt_tokens,
            tokens=list(result.tokens),
            stopped=result.stopped,
            seconds=result.seconds,
            prefill_seconds=result.prefill_seconds,
            load_seconds=dict(engine.load_seconds),
            image_bytes=m.image_bytes,
            kv_bytes=m.kv_bytes,
            workspace_bytes=m.workspace_bytes,
            stats=dict(result.stats),
        )

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed after the first token; None when there was no decode step to time."""
        decode = self.seconds - self.prefill_seconds
        return (len(self.tokens) - 1) / decode if len(self.tokens) > 1 and decode > 0 else None

    def speed(self) -> str:
        """One line. A speed never stands without what it means on this device."""
        rate = self.tokens_per_second
        text = "no decode step timed" if rate is None else f"{rate:.2f} tok/s decode"
        return f"{text} ({self.note})"

    def text(self) -> str:
        """Return the report for people."""
        rows = [
            ("model", f"{self.model} for {self.target}"),
            ("package", self.package),
            ("checkpoint", self.checkpoint),
            ("device", f"{self.device}, {self.grid} CTAs"),
            ("prompt", f"{self.prompt_tokens} tokens, {self.prefill_seconds:.2f} s"),
            ("answer", f"{len(self.tokens)} tokens, {self.seconds:.2f} s in all, ended by {self.stopped}"),
            ("speed", self.speed()),
            (
                "memory",
                f"image {self.image_bytes:,} B, kv {self.kv_bytes:,} B, workspace {self.workspace_bytes:,} B",
            ),
            ("load", ", ".join(f"{k} {v:.2f} s" for k, v in self.load_seconds.items())),
        ]
        counts = [(k, f"{v:,.2f}" if isinstance(v, float) else f"{v:,}") for k, v in self.stats.items() if v]
        width = max(len(name) for name, _ in rows + counts)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        if counts:
            lines += ["", "counts of this run"]
            lines += [f"{name:<{width}}  {value:>16}" for name, value in counts]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Return the report for programs; ``tokens_per_second`` comes with ``note``."""
        return json.dumps(asdict(self) | {"tokens_per_second": self.tokens_per_second}, indent=2) + "\n"

    def save(self, directory: Path | str) -> tuple[Path, Path]:
        """Write ``run.txt`` and ``run.json`` into ``directory``; return both paths."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text, data = folder / "run.txt", folder / "run.json"
        text.write_text(self.text())
        data.write_text(self.to_json())
        return text, data
