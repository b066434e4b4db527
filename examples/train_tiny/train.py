"""Train MiMo tiny on the Python standard library and write it as an official-format quantised checkpoint.

    python examples/train_tiny/train.py                    # the committed model's plan, 2200 steps
    python examples/train_tiny/train.py --minutes 80       # the same schedule stretched over a time budget

Seeded; resumes from ``--work`` when interrupted. The schedule is a function of the finished fraction of
``--steps`` or of ``--minutes``; with minutes it always ends in time, however busy the machine. For the last
part of the schedule experts train through MXFP4 and the FP8 matrices through FP8 (straight-through
gradients). At the end held-out perplexity before and after quantisation goes to ``training.json`` beside the
weights, and to the terminal.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import corpus  # noqa: E402
import fake_quant  # noqa: E402
from muon import Muon  # noqa: E402

from tilecc.models.mimo_tiny import default_config  # noqa: E402
from tilecc.models.mimo_v2 import MiMoV2, decode_step  # noqa: E402
from tilecc.weights.checkpoint import Checkpoint, encode_parameters, write_atomic, write_checkpoint  # noqa: E402


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result, recorded in training.json."""

    seed: int = 1
    batch: int = 8
    length: int = 512
    matrix_lr: float = 0.03
    embed_lr: float = 0.006
    head_lr: float = 0.003
    small_lr: float = 0.003
    weight_decay: float = 0.1
    balance_rate: float = 0.01
    warmup: float = 0.01
    decay_from: float = 0.2
    quantize_from: float = 0.7


def learning_rate(plan: Plan, fraction: float) -> float:
    """Multiplier of every rate: linear warm-up, constant, then linear to 2 %."""
    if fraction < plan.warmup:
        return max(fraction, plan.warmup / 20) / plan.warmup
    if fraction < plan.decay_from:
        return 1.0
    return 1.0 - 0.98 * min(1.0, (fraction - plan.decay_from) / (1 - plan.decay_from))


class Trainer:
    """Model, optimizers, expert loads and the state that a resumed run needs."""

    def __init__(self, plan: Plan, config: dict[str, Any], device: str) -> None:
        self.plan, self.device = plan, device
        self.model: MiMoV2 = decode_step(config).initialize(plan.seed).to(device)
        self.model.rounding = "f32"
        self.model.choose = self._count
        self.specs = self.model.checkpoint_spec()
        self.loads: dict[int, Tensor] = {}
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        matrices = [p for n, p in named.items() if ".mlp.experts." in n or n.endswith("_proj.weight")]
        chosen = {id(p) for p in matrices}
        rest = {n: p for n, p in named.items() if id(p) not in chosen}
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay),
            torch.optim.AdamW(
                [
                    {"params": [rest.pop("model.embed_tokens.weight")], "lr": plan.embed_lr},
                    {"params": [rest.pop("lm_head.weight")], "lr": plan.head_lr},
                    {"params": list(rest.values()), "lr": plan.small_lr},
                ],
                betas=(0.9, 0.95),
                weight_decay=0.0,
            ),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]
        self.step_number, self.elapsed = 0, 0.0

    def _count(self, layer: int, logits: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
        self.loads[layer] = torch.bincount(ids.reshape(-1), minlength=bias.shape[0])
        return ids

    def logits(self, ids: Tensor, quantized: bool) -> Tensor:
        """Logits of sequences, with straight-through quantised weights if asked."""
        if not quantized:
            return self.model.sequence_logits(ids)
        weights = {
            f"model.{name}": fake_quant.straight_through(p, self.specs[name])
            for name, p in self.model.named_parameters()
            if self.specs[name].format in ("mxfp4", "fp8_block")
        }
        return torch.func.functional_call(_Sequence(self.model), weights, (ids,))

    def step(self, ids: Tensor, fraction: float) -> float:
        """One optimizer step on token windows [B, S + 1]; returns the loss in nats."""
        rate = learning_rate(self.plan, fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
        logits = self.logits(ids[:, :-1], quantized=fraction >= self.plan.quantize_from)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._balance(rate)
        self.step_number += 1
        return loss.item()

    @torch.no_grad()
    def _balance(self, rate: float) -> None:
        """Move each expert's correction bias against its load (auxiliary-loss-free balancing)."""
        for index, load in self.loads.items():
            bias = self.model.model.layers[index].mlp.gate.e_score_correction_bias
            error = load.float().mean() - load.float()
            bias.add_(self.plan.balance_rate * rate * torch.sign(error))
            bias.sub_(bias.mean())

    def imbalance(self) -> float:
        """Largest load of an expert over the mean load, worst layer, last batch."""
        return max(float(load.max() / load.float().mean()) for load in self.loads.values())

    def save(self, file: Path) -> None:
        """Write the whole state under a temporary name and rename it."""
        state = {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step_number,
            "elapsed": self.elapsed,
        }
        temporary = file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, file)

    def load(self, file: Path) -> bool:
        """Resume from ``file`` if it exists; refuse a state of another plan."""
        if not file.exists():
            return False
        state = torch.load(file, map_location=self.device)
        if state["plan"] != asdict(self.plan):
            raise SystemExit(f"{file} belongs to another plan; delete it or give another --work")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step_number, self.elapsed = state["step"], state["elapsed"]
        return True


class _Sequence(torch.nn.Module):
    """Lets torch.func.functional_call reach sequence_logits, which is not ``forward``."""

    def __init__(self, model: MiMoV2) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.sequence_logits(ids)


def windows(stream: np.ndarray[Any, Any], plan: Plan, step: int, device: str) -> Tensor:
    """The batch of a step: random windows, a function of (seed, step) alone so that a resumed run continues
    exactly."""
    random = np.random.default_rng([plan.seed, step])
    starts = random.integers(0, len(stream) - plan.length - 1, plan.batch)
    picked = np.stack([stream[s : s + plan.length + 1] for s in starts])
    return torch.from_numpy(picked.astype(np.int64)).to(device)


def perplexity(
    model: MiMoV2, stream: np.ndarray[Any, Any], length: int, device: str, limit: int | None = None
) -> float:
    """exp of the mean loss over non-overlapping windows (predictions inside a window only)."""
    count = (len(stream) - 1) // length
    total, seen = 0.0, 0
    for i in range(min(count, limit or count)):
        ids = torch.from_numpy(stream[i * length : (i + 1) * length + 1].astype(np.int64)).to(device)
        with torch.no_grad():
            logits = model.sequence_logits(ids[None, :-1])[0]
        total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        seen += length
    return math.exp(total / seen)


def fractions(args: argparse.Namespace, trainer: Trainer) -> Iterator[float]:
    """The finished fraction before each step, until the budget is used; keeps ``trainer.elapsed``
    (seconds)."""
    before, began = trainer.elapsed, time.monotonic()
    while True:
        trainer.elapsed = before + time.monotonic() - began
        if args.minutes:
            fraction = trainer.elapsed / (args.minutes * 60)
        else:
            fraction = trainer.step_number / args.steps
        if fraction >= 1 or (args.stop_after and trainer.step_number >= args.stop_after):
            return
        yield fraction


def train(args: argparse.Namespace, plan: Plan, console: Console) -> Trainer:
    """The training loop; saves its state every five minutes and at the end."""
    text = corpus.prepare(args.work)
    trainer = Trainer(plan, default_config(), args.device)
    state = args.work / "state.pt"
    resumed = trainer.load(state)
    console.print(
        f"corpus {len(text.train):,} tokens of {text.origin['files']} files, "
        f"held out {len(text.held_out):,} tokens; "
        + (f"resuming at step {trainer.step_number}" if resumed else "starting")
    )
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    saved, smooth = time.monotonic(), 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1000, loss="")
        for fraction in fractions(args, trainer):
            loss = trainer.step(windows(text.train, plan, trainer.step_number, args.device), fraction)
            smooth = loss if smooth == 0 else smooth + 0.05 * (loss - smooth)
            bar.update(task, completed=int(1000 * fraction), loss=f"loss {smooth:.3f}")
            if not console.is_terminal and trainer.step_number % 20 == 0:
                console.print(
                    f"step {trainer.step_number} {100 * fraction:.1f} % loss {smooth:.3f} "
                    f"largest load {trainer.imbalance():.2f} x mean, {trainer.elapsed:.0f} s"
                )
            if trainer.step_number % 200 == 0:
                ppl = perplexity(trainer.model, text.held_out, plan.length, args.device, limit=16)
                console.print(f"step {trainer.step_number}: held-out perplexity (part) {ppl:.2f}")
            if time.monotonic() - saved > 300:
                trainer.save(state)
                saved = time.monotonic()
    trainer.save(state)
    finish(args, trainer, text, console)
    return trainer


def finish(args: argparse.Namespace, trainer: Trainer, text: corpus.Corpus, console: Console) -> None:
    """Write checkpoint, tokenizer and report to ``--out``. Perplexities are measured on what was written."""
    model, plan, out, held = trainer.model, trainer.plan, args.out, text.held_out
    model.choose = None
    values = {name: p.detach().float().cpu().numpy() for name, p in model.named_parameters()}
    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, default_config(), encode_parameters(values, trainer.specs))
    write_atomic(out / "tokenizer.json", [text.tokenizer.to_str(pretty=True).encode()])
    before = perplexity(model, held, plan.length, args.device)
    stored = decode_step(default_config()).load(Checkpoint(out)).to(args.device)
    stored.rounding = "f32"
    after = perplexity(stored, held, plan.length, args.device)
    stored.rounding = "bf16"
    rounded = perplexity(stored, held, plan.length, args.device)
    report = {
        "plan": asdict(plan),
        "steps": trainer.step_number,
        "tokens_seen": trainer.step_number * plan.batch * plan.length,
        "minutes": round(trainer.elapsed / 60, 1),
        "device": device_name(args.device),
        "torch": torch.__version__,
        "corpus": {"tokens": len(text.train), **text.origin},
        "held_out_files": list(corpus.HELD_OUT),
        "held_out_tokens": len(held),
        "held_out_perplexity": {
            "float32_weights": round(before, 4),
            "quantized_checkpoint": round(after, 4),
            "quantized_checkpoint_bf16_activations": round(rounded, 4),
        },
    }
    write_atomic(out / "training.json", [(json.dumps(report, indent=2) + "\n").encode()])
    console.print(
        f"{trainer.step_number} steps, {report['tokens_seen']:,} tokens, {report['minutes']} minutes\n"
        f"held-out perplexity: {before:.3f} with float32 weights, {after:.3f} from the quantised checkpoint, "
        f"{rounded:.3f} with bf16 activations as well\nwritten to {out}"
    )


def device_name(device: str) -> str:
    """What the training ran on, for the report."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/train_tiny/checkpoint"), help="folder for the checkpoint"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/train_tiny"), help="folder for the resumable state"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=2200, help="number of steps (default 2200)")
    budget.add_argument(
        "--minutes", type=float, default=0.0, help="wall-clock budget instead of a number of steps"
    )
    parser.add_argument("--stop-after", type=int, default=0, help="stop at this step and write what there is")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if sys.platform == "linux" and args.device == "cpu":
        # Keep freed activations in the heap: returning and re-faulting their pages costs a third of a step.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    plan = Plan(**{name: getattr(args, name) for name in asdict(Plan())})
    train(args, plan, Console(stderr=True, soft_wrap=True))


if __name__ == "__main__":
    main()
