"""`tilecc run`: continue a prompt."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tilecc.cli.console import emit, emit_json, say, status
from tilecc.cli.logits import check_choice
from tilecc.cli.packages import config_places, is_model, kv_of, model_of, package_of
from tilecc.cli.verify import Verdict, verify_greedy
from tilecc.diag import error

DEVICES = ("emulator", "reference", "cuda")
SCHEDULES = ("round_robin", "random", "pct")


@dataclass(frozen=True)
class Answer:
    """What a device made of a prompt. ``report`` holds the facts for run.json, ``text`` those for run.txt."""

    tokens: list[int]
    package: Path | None
    source: Path | None
    report: dict[str, Any]
    text: str
    speed: str


def run_command(
    package: Annotated[
        Path, typer.Argument(metavar="PACKAGE_OR_MODEL", help="Package, or model file.", show_default=False)
    ],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", help="Checkpoint directory.", show_default=False)
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", help="Text to continue; - reads stdin.", show_default=False)
    ],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens at most.")] = 64,
    device: Annotated[str, typer.Option("--device", help="emulator, reference or cuda.")] = "emulator",
    max_context: Annotated[
        int, typer.Option("--max-context", help="Context to compile a model file for.")
    ] = 1024,
    grid: Annotated[
        int | None, typer.Option("--grid", min=1, help="Number of CTAs of the emulator.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the emulator's schedule.")] = 0,
    schedule: Annotated[str, typer.Option("--schedule", help="round_robin, random or pct.")] = "round_robin",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compare every token with the PyTorch reference; exit 4 if they differ."
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Directory of the run's report [default: PACKAGE.run].", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Continue a prompt greedily, and leave a report of the run beside the package.

    Prints the continuation. A model file is compiled first, with the checkpoint's own config.json.
    """
    check_choice("--device", device, DEVICES)
    check_choice("--schedule", schedule, SCHEDULES)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise error(
            "TC0403", "the prompt is empty", help="give some text with --prompt, or --prompt - and stdin"
        )

    from tilecc.runtime.text import TextStream, Tokenizer

    if device == "reference":
        model_of(package)
        folder = None
    else:
        folder = package_of(package, checkpoint, max_context=max_context)
    tokenizer = Tokenizer(checkpoint)
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces: list[str] = []

    def show(token: int) -> None:
        pieces.append(stream.push(token))
        if not json:
            emit(pieces[-1], end="")

    with config_places(checkpoint / "config.json"):
        if folder is None:
            answer = _reference(package, checkpoint, ids, max_tokens, show, text)
        else:
            answer = _engine(folder, checkpoint, ids, max_tokens, show, text, device, grid, seed, schedule)
    pieces.append(stream.finish())
    if not json:
        emit(pieces[-1])
    verdict = None
    if verify:
        model = package if is_model(package) else model_of(package)
        with status("comparing with the PyTorch reference"):
            verdict = verify_greedy(model, checkpoint, ids, answer.tokens, kv_of(package))
    where = report or (
        folder.with_name(folder.name + ".run") if folder else Path("build") / f"{package.stem}.run"
    )
    facts = answer.report | {
        "prompt": text,
        "text": "".join(pieces),
        "greedy": verdict.to_json() if verdict else None,
    }
    saved = _save(where, facts, answer.text, verdict)
    say()
    say(f"{len(answer.tokens)} tokens: {answer.speed}")
    if verdict:
        say(verdict.line())
    for name, path in (("source", answer.source), ("package", answer.package), ("report", saved)):
        if path is not None:
            say(f"  {name:<8} {path}")
    if json:
        paths = {"package": answer.package, "source": answer.source, "report_file": saved}
        emit_json(facts | {name: str(path) if path else None for name, path in paths.items()})
    if verdict and not verdict.ok:
        raise typer.Exit(4)


def _engine(
    package: Path,
    checkpoint: Path,
    ids: list[int],
    max_tokens: int,
    show: Callable[[int], None],
    prompt: str,
    device: str,
    grid: int | None,
    seed: int,
    schedule: str,
) -> Answer:
    """Run the package's own kernel on the emulator or a GPU."""
    from tilecc.runtime.engine import Engine
    from tilecc.runtime.report import RunReport

    with status(f"opening {package.name} on the {device}"):
        engine = Engine.open(package, checkpoint, device=device, grid=grid, seed=seed, schedule=schedule)
    with engine:
        engine.check_prompt(ids, max_tokens)
        say(prompt, end="")
        result = engine.generate(ids, max_tokens, on_token=show)
        facts = RunReport.of(engine, result, package, checkpoint)
    return Answer(
        tokens=list(result.tokens),
        package=package,
        source=package / engine.manifest.source,
        report=json_module.loads(facts.to_json()),
        text=facts.text(),
        speed=facts.speed(),
    )


def _reference(
    model: Path, checkpoint: Path, ids: list[int], max_tokens: int, show: Callable[[int], None], prompt: str
) -> Answer:
    """Run the model file eagerly in PyTorch."""
    with status("loading the model into PyTorch"):
        from tilecc.runtime.devices.reference import Reference

        loaded = Reference(model_of(model), checkpoint, kv=kv_of(model))
    say(prompt, end="")
    result = loaded.generate(ids, max_tokens, on_token=show)
    tokens = list(result.tokens)
    speed = f"{result.seconds:.1f} s ({loaded.note})"
    facts = {
        "model": model.stem,
        "checkpoint": str(checkpoint),
        "device": "reference",
        "prompt_tokens": len(ids),
        "tokens": tokens,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "note": loaded.note,
    }
    rows = [
        ("model", str(model)),
        ("checkpoint", str(checkpoint)),
        ("device", "reference"),
        ("answer", speed),
    ]
    text = "".join(f"{name:<12}{value}\n" for name, value in rows)
    return Answer(tokens=tokens, package=None, source=None, report=facts, text=text, speed=speed)


def _save(folder: Path, facts: dict[str, Any], text: str, verdict: Verdict | None) -> Path:
    """Write run.json and run.txt into ``folder``; return the path of the text. Raises TC0703."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        document = json_module.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (folder / "run.json").write_text(document, encoding="utf-8")
        greedy = f"\n{verdict.text()}\n" if verdict else ""
        body = f"{text}{greedy}\nprompt\n{facts['prompt']}\n\ncontinuation\n{facts['text']}\n"
        (folder / "run.txt").write_text(body, encoding="utf-8")
    except OSError as reason:
        raise error(
            "TC0703", f"the report cannot be written to `{folder}`", note=reason.strerror or str(reason)
        ) from None
    return folder / "run.txt"
