"""MiMo tiny: every feature of MiMo-V2.5-Pro at a size that trains on a CPU. Weights:
``models/mimo_tiny/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilecc.models.mimo_v2 import MiMoV2
from tilecc.models.mimo_v2 import decode_step as _decode_step

CHECKPOINT = Path(__file__).resolve().parent / "mimo_tiny"
"""The committed checkpoint: config.json, model.safetensors and its index, tokenizer.json."""


def default_config() -> dict[str, Any]:
    """The committed official-format configuration."""
    parsed: dict[str, Any] = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    return parsed


def decode_step(config: dict[str, Any] | None = None) -> MiMoV2:
    """The decode step; ``config`` None means ``models/mimo_tiny/config.json``."""
    return _decode_step(default_config() if config is None else config)
