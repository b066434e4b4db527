"""Imports a model file and makes its module on meta tensors, checking the contract of a decode step.

The contract (docs/models.md): `decode_step(config=None)` returns a `torch.nn.Module` with
`forward(tokens, positions, seqs, *caches)`, `caches(device, max_seqs, max_context)` and `checkpoint_spec()`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tilecc.diag import Span, TileccError, error
from tilecc.trace.source import Sources

CONTRACT = "see docs/models.md for the contract of a model file"


@contextlib.contextmanager
def user_code(sources: Sources, code: str, doing: str) -> Iterator[None]:
    """Run code of the model: its prints go to stderr, its exceptions become `code` at the user's own line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except TileccError:
        raise  # the model file's own diagnostics, for example of its configuration
    except (Exception, SystemExit) as exc:
        text = str(exc).strip().partition("\n")[0] or "no message"
        message = f"{doing} raised {type(exc).__name__}: {text}"
        raise error(code, message, span=sources.span_of_exception(exc)) from exc


def import_model(model_file: Path) -> ModuleType:
    """Import a model file under a name of its own. Raises TC0101 (no such file), TC0103 (exception)."""
    if not model_file.is_file() or model_file.suffix != ".py":
        why = "is not a Python file" if model_file.exists() else "does not exist"
        near = sorted(p.name for p in model_file.parent.glob("*.py")) if model_file.parent.is_dir() else []
        note = f"Python files beside it: {', '.join(near[:10])}" if near else ""
        raise error("TC0101", f"model file `{model_file}` {why}", note=note)
    sources = Sources(model_file)
    digest = hashlib.sha256(str(model_file.resolve()).encode()).hexdigest()[:8]
    name = f"_tilecc_model_{model_file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, model_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up by its name
    folder = str(sources.folder)
    sys.path.append(folder)  # last: a file beside the model must not hide an installed package
    try:
        with user_code(sources, "TC0103", f"importing `{model_file.name}`"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def make_module(model_file: Path, config: dict[str, Any] | None, device: str = "meta") -> nn.Module:
    """The module of a model file, on `device` (meta: no memory), in eval mode, without gradients.

    Raises TC0101, TC0103 as `import_model`; TC0102 without a function `decode_step`; TC0104 when what it
    returns does not follow the contract.
    """
    imported = import_model(model_file)
    function = getattr(imported, "decode_step", None)
    if not callable(function):
        have = [
            n
            for n, v in vars(imported).items()
            if inspect.isfunction(v) and v.__module__ == imported.__name__
        ]
        raise error(
            "TC0102",
            f"model file `{model_file.name}` has no function `decode_step`",
            span=Span(str(model_file), 1),
            note=f"it defines: {', '.join(have[:10])}" if have else "",
            help="define `def decode_step(config: dict | None = None) -> torch.nn.Module`",
        )
    sources = Sources(model_file)
    _bind(sources, function, (config,), "decode_step(config)")
    with user_code(sources, "TC0103", "`decode_step`"), torch.device(device):
        module = function(config)
    _check_contract(sources, function, module)
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False)


def _check_contract(sources: Sources, function: Any, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise error(
            "TC0104",
            f"`decode_step` returned {type(module).__name__}, not a torch.nn.Module",
            span=_span_of(sources, function),
            help=CONTRACT,
        )
    for name in ("caches", "checkpoint_spec"):
        if not callable(getattr(module, name, None)):
            raise error(
                "TC0104",
                f"the module `{type(module).__name__}` has no method `{name}`",
                span=_span_of(sources, type(module)),
                help=CONTRACT,
            )
    placeholder = object()
    _bind(sources, module.forward, (placeholder,) * 5, "forward(tokens, positions, seqs, *caches)")
    _bind(sources, module.caches, (placeholder,) * 3, "caches(device, max_seqs, max_context)")
    _bind(sources, module.checkpoint_spec, (), "checkpoint_spec()")


def _bind(sources: Sources, function: Any, arguments: tuple[Any, ...], form: str) -> None:
    """Check that `function` can be called with `arguments`."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise error(
            "TC0104",
            f"`{getattr(function, '__name__', 'function')}{signature}` cannot be called as `{form}`",
            span=_span_of(sources, function),
            help=CONTRACT,
        ) from None


def _span_of(sources: Sources, item: Any) -> Span:
    """Where a class or function of the model is defined; the model file if it is not the model's."""
    with contextlib.suppress(OSError, TypeError):
        file = sources.relative(inspect.getsourcefile(item) or "<none>")
        if file is not None:
            return Span(sources.actual(file), inspect.getsourcelines(item)[1])
    return Span(str(sources.model_file))
