"""Makes checkpoints that are wrong in one way, by editing the header of the committed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"

Header = dict[str, dict[str, Any]]


def copy(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A copy of the checkpoint with links instead of the weights; ``config`` changes keys of config.json."""
    out = folder / "checkpoint"
    out.mkdir()
    for file in CHECKPOINT.iterdir():
        if file.name == "config.json":
            parsed = json.loads(file.read_text()) | (config or {})
            (out / file.name).write_text(json.dumps(parsed, indent=2))
        elif file.suffix in (".safetensors", ".json"):
            (out / file.name).symlink_to(file)
    return out


def edit(folder: Path, change: Callable[[Header, bytearray], None]) -> Path:
    """A copy whose weights file had its header and data changed; it has no index."""
    out = copy(folder)
    source = CHECKPOINT / "model.safetensors"
    raw = source.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    change(header, data)
    text = json.dumps(header).encode()
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (out / name).unlink()
    (out / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return out


def truncate(folder: Path) -> Path:
    """A copy whose weights file ends early."""
    out = copy(folder)
    (out / "model.safetensors").unlink()
    shutil.copy(CHECKPOINT / "model.safetensors", out / "model.safetensors")
    with open(out / "model.safetensors", "r+b") as file:
        file.truncate(1_000_000)
    return out
