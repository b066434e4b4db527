"""What several commands share: reading configurations, finding packages, compiling a model on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilecc.cli.console import say, status
from tilecc.diag import Diagnostic, Span, TileccError, error

DEFAULT_TARGET = "sm_90a"
"""Target of packages made on the way for the emulator, where the architecture decides limits only."""

_CONFIG_CODES = {"TC0107", "TC0202", "TC0203", "TC0306"}
"""Codes of findings about keys of a config.json."""

_SOURCE_SUFFIXES = {".py", ".cuh", ".h", ".cpp", ".cc", ".cu", ".jinja", ".j2"}


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's config.json. Raises TC0108 with the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        why = getattr(reason, "strerror", None) or "it is not UTF-8 text"
        raise error("TC0108", f"configuration file `{path}` cannot be read", note=why) from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as reason:
        span = Span(str(path), reason.lineno, reason.colno)
        raise error(
            "TC0108", f"configuration file `{path}` is not JSON", span=span, note=reason.msg
        ) from None
    if not isinstance(value, dict):
        raise error(
            "TC0108",
            f"configuration file `{path}` is not a JSON object",
            span=Span(str(path), 1),
            note=f"its top level is a {type(value).__name__}",
        )
    return value


@contextmanager
def config_places(path: Path) -> Iterator[None]:
    """Give diagnostics that speak of a key of a configuration, but have no place, its line in ``path``."""
    try:
        yield
    except TileccError as found:
        raise TileccError([_placed(d, path) for d in found.diagnostics]) from found


def _placed(found: Diagnostic, path: Path) -> Diagnostic:
    if found.span is not None or found.code not in _CONFIG_CODES:
        return found
    lines = path.read_text(encoding="utf-8").splitlines()
    # A finding may name the section before the key in it.
    keys = re.findall(r"`(\w+)`", found.message)
    for key in sorted(keys, key=lambda k: k == "quantization_config"):
        for number, line in enumerate(lines, 1):
            column = line.find(f'"{key}"')
            if column >= 0:
                return dataclasses.replace(found, span=Span(str(path), number, column + 1))
    return dataclasses.replace(found, span=Span(str(path)))


def is_model(path: Path) -> bool:
    """True if the path is meant as a model file and not as a package."""
    return path.suffix == ".py"


def package_of(given: Path, checkpoint: Path, *, max_context: int, max_seqs: int = 1) -> Path:
    """Return the package to run: ``given``, or what a model file compiles to with the checkpoint's config.

    A package compiled on the way is kept in the cache directory under the hash of the model, the
    configuration and the compiler, so the second run does not compile. Raises the errors of the compiler,
    TC0601 and TC0301.
    """
    if not is_model(given):
        from tilecc.package import Manifest

        Manifest.load(given)  # the error of a wrong path, before anything heavy is imported
        return given
    config = checkpoint_config(checkpoint)
    if not given.is_file():
        from tilecc.diag.model import nearest

        beside = [p.name for p in given.parent.glob("*.py")] if given.parent.is_dir() else []
        raise error("TC0101", f"model file `{given}` does not exist", help=nearest(given.name, beside))
    key = _key(given, config, max_context, max_seqs)
    out = cache_dir() / "packages" / f"{given.stem}-{DEFAULT_TARGET}-{key}"
    if (out / "manifest.json").is_file():
        say(f"package from the cache: {out}")
        return out

    from tilecc.emit.compiler import compile_model

    with config_places(checkpoint / "config.json"), status(f"compiling {given.name} for {DEFAULT_TARGET}"):
        result = compile_model(
            given, target=DEFAULT_TARGET, out=out, config=config, max_context=max_context, max_seqs=max_seqs
        )
    say(f"compiled in {sum(result.seconds.values()):.1f} s: {result.package_dir}")
    return result.package_dir


def kv_of(given: Path) -> str:
    """Format of the KV cache: a package's own, bf16 for a model file."""
    from tilecc.package import Manifest

    return "bf16" if is_model(given) else Manifest.load(given).kv_format


def model_of(given: Path) -> Path:
    """Return the model file of a package, for the reference device: in models/ here or in the installed one.

    Raises TC0601 (not a package) and TC0409 (the package's model file is not found).
    """
    if is_model(given):
        return given
    import tilecc
    from tilecc.package import Manifest

    name = Manifest.load(given).model_file
    folders = [Path.cwd(), Path.cwd() / "models", Path(tilecc.__file__).parent / "models"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise error(
        "TC0409",
        f"the model file `{name}` of package `{given}` was not found",
        note="the reference runs the model file; a package does not contain it",
        help="give the path of the model file instead of the package",
    )


def checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """Return the config.json of a checkpoint. Raises TC0301 (no checkpoint) or TC0108 (not readable)."""
    from tilecc.weights.checkpoint import Checkpoint

    return Checkpoint(checkpoint).config


def cache_dir() -> Path:
    """Return TILECC_CACHE_DIR, else ~/.cache/tilecc (not made)."""
    named = os.environ.get("TILECC_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "tilecc"


def parse_ids(text: str) -> list[int]:
    """Parse ``"1,2,3"`` (blanks allowed). Raises TC0703 for anything else and TC0403 for no ids."""
    if not text.strip():
        raise error("TC0403", "no token ids given", help="give them as `--ids 1,2,3`")
    ids = []
    for place, part in enumerate(text.split(",")):
        try:
            ids.append(int(part))
        except ValueError:
            raise error(
                "TC0703",
                f"`--ids` takes integers separated by commas, `{part.strip()}` (entry {place}) is none",
                help="give them as `--ids 1,2,3`",
            ) from None
    return ids


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse ``"0,15,31"``. Raises TC0703 for anything but integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise error(
            "TC0703", f"`{option}` takes integers separated by commas", help=f"give them as `{option} 0,1,2`"
        ) from None


def _key(model: Path, config: dict[str, Any], max_context: int, max_seqs: int) -> str:
    """Hash everything that decides the package's bytes: the compiler's and the model's sources, the sizes."""
    import tilecc

    root = Path(tilecc.__file__).parent
    digest = hashlib.sha256()
    beside = sorted(p for p in model.parent.glob("*.py"))
    own = sorted(p for p in _files(root) if p.suffix in _SOURCE_SUFFIXES)
    for path in [model.resolve(), *beside, *own]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(json.dumps([str(model.resolve()), config, max_context, max_seqs], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _files(root: Path) -> list[Path]:
    """All files below ``root``, through the links to the top-level folders."""
    return [Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names]
