"""`tilecc logits`: teacher-forced logits of given token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecc.cli.console import emit, emit_json, say, status
from tilecc.cli.packages import config_places, is_model, kv_of, model_of, package_of, parse_ids
from tilecc.diag import error
from tilecc.diag.model import nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEVICES = ("emulator", "reference", "cuda")
ROUNDINGS = ("bf16", "f32")


def logits_command(
    model: Annotated[Path, typer.Argument(help="Model file, or a package.", show_default=False)],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", help="Checkpoint directory.", show_default=False)
    ],
    ids: Annotated[str, typer.Option("--ids", help="Token ids: 1,2,3.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .npy file to write.", show_default=False)
    ],
    device: Annotated[str, typer.Option("--device", help="emulator, reference or cuda.")] = "emulator",
    rounding: Annotated[
        str, typer.Option("--rounding", help="Of the reference: bf16 (the kernel's rounding points) or f32.")
    ] = "bf16",
    max_context: Annotated[
        int, typer.Option("--max-context", help="Context to compile a model file for.")
    ] = 1024,
    grid: Annotated[
        int | None, typer.Option("--grid", min=1, help="Number of CTAs of the emulator.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the emulator's schedule.")] = 0,
    schedule: Annotated[str, typer.Option("--schedule", help="round_robin, random or pct.")] = "round_robin",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute the logits of given token ids and write them to a float32 array, one row per position.

    The checkpoint's own config.json decides the sizes of the model. Prints the path of the file written.
    """
    tokens = parse_ids(ids)
    check_choice("--device", device, DEVICES)
    check_choice("--rounding", rounding, ROUNDINGS)
    if output.suffix != ".npy":
        raise error("TC0703", f"`-o {output}` must end in `.npy`", help=f"-o {output.with_suffix('.npy')}")
    if not output.parent.is_dir():
        raise error("TC0703", f"`-o {output}`: the directory `{output.parent}` does not exist")
    facts: dict[str, Any] = {"device": device}
    if device == "reference":
        from tilecc.runtime.devices.reference import reference_logits

        facts["rounding"] = rounding
        with (
            config_places(checkpoint / "config.json"),
            status(f"computing {len(tokens)} positions in PyTorch"),
        ):
            logits = reference_logits(model_of(model), checkpoint, tokens, rounding, kv_of(model))
    else:
        from tilecc.runtime.engine import Engine

        package = package_of(model, checkpoint, max_context=max_context)
        if is_model(model):
            facts["package"] = str(package)
        with (
            config_places(checkpoint / "config.json"),
            status(f"computing {len(tokens)} positions on the {device}"),
            Engine.open(
                package, checkpoint, device=device, grid=grid, seed=seed, schedule=schedule
            ) as engine,
        ):
            logits = engine.logits(tokens)
            facts["grid"] = engine.device.grid
    save_npy(output, logits)
    say(f"wrote float32 [{logits.shape[0]}, {logits.shape[1]}] to {output}")
    if json:
        emit_json({"file": str(output), "shape": list(logits.shape), "dtype": "float32"} | facts)
    else:
        emit(str(output))


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise TC0703 (TC0406 for ``--device``) unless ``value`` is one of ``allowed``."""
    if value in allowed:
        return
    code = "TC0406" if option == "--device" else "TC0703"
    raise error(
        code,
        f"unknown value `{value}` of `{option}`",
        note=f"allowed: {', '.join(allowed)}",
        help=nearest(value, allowed),
    )


def save_npy(path: Path, values: NDArray[Any]) -> None:
    """Write an array as .npy under a temporary name and rename it. Raises TC0703 if that is not possible."""
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            np.save(out, np.ascontiguousarray(values, dtype=np.float32))
        os.replace(temporary, path)
    except OSError as reason:
        temporary.unlink(missing_ok=True)
        raise error("TC0703", f"`-o {path}` cannot be written", note=reason.strerror or str(reason)) from None
