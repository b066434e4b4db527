"""Runs torch.export on a decode step: meta tensors, T rows as a dynamic dimension."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode
from torch.fx.node import Node as FxNode

from tilecc.diag import Span, TileccError, error
from tilecc.trace.load import CONTRACT, user_code
from tilecc.trace.source import Sources

MAX_ROWS = 8
# Sizes of the meta caches. They only have to differ from each other and stay clear of 0 and 1.
_SEQS, _CONTEXT = 3, 64

# What torch says when Python code asks for the value of a tensor (messages of torch 2.5 to 2.13).
_DATA_DEPENDENT = re.compile(
    r"data-dependent|item\(\) cannot be called on meta|Cannot copy out of meta tensor"
    r"|symbolic (float|int|bool)|DataDependent|dynamic control flow"
)


def meta_caches(sources: Sources, module: nn.Module) -> list[Tensor]:
    """The module's caches on meta tensors: k0 [S, C, Hk, D], v0 [S, C, Hk, Dv], k1, ... Raises TC0104."""
    with user_code(sources, "TC0109", "`caches`"):
        caches = list(module.caches(torch.device("meta"), _SEQS, _CONTEXT))
    for index, cache in enumerate(caches):
        sound = isinstance(cache, Tensor) and cache.ndim == 4 and cache.shape[:2] == (_SEQS, _CONTEXT)
        if not sound or cache.dtype != torch.float32 or len(caches) % 2:
            what = (
                f"a {cache.dtype} {list(cache.shape)}" if isinstance(cache, Tensor) else type(cache).__name__
            )
            raise error(
                "TC0104",
                f"`caches` must return k [S, C, heads, dim], v [S, C, heads, dim] of each layer as float32;"
                f" entry {index} of {len(caches)} is {what}",
                span=Span(str(sources.model_file)),
                note=f"called with max_seqs={_SEQS}, max_context={_CONTEXT}",
                help=CONTRACT,
            )
    return caches


def export(sources: Sources, module: nn.Module, caches: Sequence[Tensor]) -> ExportedProgram:
    """Trace one step of T rows. The result is not functionalised: `attend` mutates its caches in place.

    Raises TC0106 for control flow that depends on tensor values or on the number of rows, TC0109 for an
    exception of the model's own code.
    """
    rows = [torch.empty(MAX_ROWS - 1, dtype=torch.int64, device="meta") for _ in range(3)]
    dim = Dim("T", min=1, max=MAX_ROWS)
    arguments = inspect.signature(module.forward).bind(*rows, *caches).arguments
    # one entry per parameter of forward; *caches is a single parameter that holds a tuple
    shapes = {name: ({0: dim} if any(v is r for r in rows) else _static(v)) for name, v in arguments.items()}
    try:
        with _quiet(), torch.no_grad(), user_code(sources, "TC0109", "the decode step"):
            return torch.export.export(module, (*rows, *caches), dynamic_shapes=shapes, strict=False)
    except TileccError as wrapped:
        cause = wrapped.__cause__
        refused = None if cause is None else _refusal(sources, cause)
        raise (wrapped if refused is None else refused) from cause


def _static(value: object) -> object:
    return (None,) * len(value) if isinstance(value, tuple) else None


def _refusal(sources: Sources, exc: BaseException) -> TileccError | None:
    """TC0106 for what export cannot capture; None for an ordinary exception of the model."""
    chain: list[BaseException] = [exc]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    text = str(exc)
    span = sources.span_of_exception(exc)
    if any(isinstance(e, ConstraintViolationError) for e in chain) or "Constraints violated" in text:
        return error(
            "TC0106",
            f"the decode step is not defined for every number of rows from 1 to {MAX_ROWS}",
            span=span,
            note=_first_line(text, r"- .*"),
            help="write shapes in terms of `tokens.shape[0]`, without comparing it with a number",
        )
    data_dependent = any(isinstance(e, GuardOnDataDependentSymNode) for e in chain)
    if data_dependent or _DATA_DEPENDENT.search(f"{type(exc).__name__}: {text}"):
        return error(
            "TC0106",
            "the decode step has Python control flow that depends on the values of a tensor",
            span=span,
            help="decide in `decode_step(config)`: the step must be the same graph for every input",
        )
    return None


def _first_line(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0].strip("- ") if match else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own warnings and logs out of the user's terminal: we report what matters ourselves."""
    root = logging.getLogger("torch")
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def module_path(node: FxNode) -> str:
    """Path of the torch module whose forward made the node, such as `layers.3.self_attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""
