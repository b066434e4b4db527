"""The model file itself, run eagerly by PyTorch: what every other device is compared with.

No package, no kernel: the decode step of the model file, in float32, on the checkpoint's dequantised weights.
With ``rounding="bf16"`` it rounds where the kernel hands bf16 from op to op, with "f32" nowhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilecc.diag import TileccError, error
from tilecc.runtime.abi import MAX_ROWS
from tilecc.runtime.engine import GenerateResult, chunks_of, stop_ids_of
from tilecc.weights.checkpoint import Checkpoint


class Reference:
    """A model file with a checkpoint's weights; sizes come from the checkpoint's config.json."""

    name = "reference"
    note = "PyTorch eager on the CPU, not the kernel"

    def __init__(
        self,
        model: Path | str | torch.nn.Module,
        checkpoint_dir: Path | str,
        rounding: str = "bf16",
        kv: str = "bf16",
    ) -> None:
        """``model``: a model file, or its module with uninitialised parameters. ``kv``: format of the KV
        cache, bf16 or fp8.

        Raises TC0101-TC0104 for the model file, TC03xx for the checkpoint, TC0403 never (see the calls).
        """
        if rounding not in ("bf16", "f32"):
            raise error("TC0407", f"unknown rounding `{rounding}`", help="bf16 or f32")
        self.checkpoint = Checkpoint(checkpoint_dir)
        module: Any = model
        if not isinstance(model, torch.nn.Module):
            module = _decode_step(Path(model))(self.checkpoint.config)
        spec = module.checkpoint_spec()
        self.checkpoint.require(spec)
        state = {fqn: torch.from_numpy(self.checkpoint.parameter(param)) for fqn, param in spec.items()}
        _check_names(module, state)
        module.load_state_dict(state, strict=False, assign=True)
        module.rounding = rounding
        module.kv_format = kv
        self.module = module.eval().requires_grad_(False)
        self.stop_ids = stop_ids_of(checkpoint_dir, self.checkpoint.config)
        self.vocab = int(self._probe().shape[-1])

    def logits(self, ids: Sequence[int], chunk: int = MAX_ROWS) -> NDArray[np.float32]:
        """Return the logits f32[len(ids), vocab] of a given text, ``chunk`` rows per step. Raises TC0403."""
        self._check(ids)
        caches = self.module.caches("cpu", 1, len(ids))
        parts = [self._step(rows, caches)[0] for rows in chunks_of(ids, chunk)]
        values: NDArray[np.float32] = torch.cat(parts).numpy()
        return values

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        on_token: Callable[[int], None] | None = None,
        stop_ids: Sequence[int] | None = None,
    ) -> GenerateResult:
        """Continue a prompt greedily, like ``Engine.generate``. Raises TC0403."""
        self._check(prompt_ids)
        stop = tuple(self.stop_ids if stop_ids is None else stop_ids)
        began = time.perf_counter()
        caches = self.module.caches("cpu", 1, len(prompt_ids) + max(max_tokens, 1))
        steps = chunks_of(list(prompt_ids), MAX_ROWS)
        tokens: list[int] = []
        stopped, prefill, ran = "length", 0.0, 0
        while len(tokens) < max_tokens:
            for rows in steps:
                newest = int(self._step(rows, caches)[1][-1])
                ran += 1
            prefill = prefill or time.perf_counter() - began
            if newest in stop:
                stopped = "stop"
                break
            tokens.append(newest)
            if on_token is not None:
                on_token(newest)
            steps = [[(newest, len(prompt_ids) + len(tokens) - 1, 0)]]
        seconds = time.perf_counter() - began
        return GenerateResult(tokens, seconds, {"steps": ran}, stopped, prefill, len(prompt_ids))

    @torch.no_grad()
    def _step(
        self, rows: Sequence[tuple[int, int, int]], caches: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, positions, seqs = torch.tensor(rows, dtype=torch.int64).unbind(1)
        logits, following = self.module(tokens, positions, seqs, *caches)
        return logits, following

    def _probe(self) -> torch.Tensor:
        return self._step([(0, 0, 0)], self.module.caches("cpu", 1, 1))[0]

    def _check(self, ids: Sequence[int]) -> None:
        if not len(ids):
            raise error("TC0403", "the prompt is empty", help="give at least one token")
        bad = [(i, t) for i, t in enumerate(ids) if not 0 <= t < self.vocab]
        if bad:
            raise error(
                "TC0403",
                f"token id {bad[0][1]} (position {bad[0][0]}) is outside the vocabulary of {self.vocab}",
                help="encode the prompt with the tokenizer of the same checkpoint",
            )


def reference_generate(
    model_file: Path | str | torch.nn.Module,
    checkpoint_dir: Path | str,
    prompt_ids: Sequence[int],
    max_tokens: int,
) -> GenerateResult:
    """Greedy continuation by the bf16-rounded reference."""
    return Reference(model_file, checkpoint_dir).generate(prompt_ids, max_tokens)


def reference_logits(
    model_file: Path | str | torch.nn.Module,
    checkpoint_dir: Path | str,
    ids: Sequence[int],
    rounding: str = "bf16",
    kv: str = "bf16",
) -> NDArray[np.float32]:
    """Teacher-forced logits f32[len(ids), vocab]; ``rounding`` "bf16" or "f32", ``kv`` "bf16" or "fp8"."""
    return Reference(model_file, checkpoint_dir, rounding, kv).logits(ids)


def _check_names(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """A parameter without a source would stay uninitialised, a source without a parameter would be lost."""
    own = {name for name, _ in module.named_parameters()}
    for names, what in [
        (own - state.keys(), "no entry for parameter"),
        (state.keys() - own, "an entry for no parameter"),
    ]:
        if names:
            raise error("TC0104", f"`checkpoint_spec()` has {what} `{sorted(names)[0]}`")


def _decode_step(file: Path) -> Callable[[dict[str, Any]], torch.nn.Module]:
    """Import a model file and return its ``decode_step``. ``tilecc.trace`` has the thorough checks."""
    if not file.is_file():
        raise error("TC0101", f"model file `{file}` does not exist")
    name = f"_tilecc_reference_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise error("TC0101", f"model file `{file}` is not a Python file")
    imported = importlib.util.module_from_spec(spec)
    sys.modules[name] = imported
    # Last, so that a file beside the model cannot hide an installed package.
    sys.path.append(str(file.resolve().parent))
    try:
        spec.loader.exec_module(imported)
    except TileccError:
        raise
    except Exception as reason:
        raise error("TC0103", f"importing `{file.name}` raised {type(reason).__name__}: {reason}") from reason
    finally:
        sys.path.pop()
    function = getattr(imported, "decode_step", None)
    if not callable(function):
        raise error("TC0102", f"model file `{file.name}` has no function `decode_step`")
    step: Callable[[dict[str, Any]], torch.nn.Module] = function
    return step
