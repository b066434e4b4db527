"""Runs torch.export on a decode step: meta tensors, T rows as a dynamic dimension."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode
from torch.fx.node import Node as FxNode

from tilecc.diag import Span, TileccError, error
from tilecc.ir.rows import ROW_COUNTS
from tilecc.trace.load import CONTRACT, user_code
from tilecc.trace.source import Sources

MAX_ROWS = max(ROW_COUNTS)
# Sizes of the example. They only have to differ from each other and stay clear of 0 and 1.
_ROWS, _SEQS, _CONTEXT = 7, 3, 64

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


def further_inputs(module: nn.Module) -> dict[str, int]:
    """Inputs of forward between seqs and the caches: name -> columns (f32 [T, columns]), 0 for i64 [T]. The
    module's attribute `step_inputs`, if it has one."""
    return dict(getattr(module, "step_inputs", {}))


def export(sources: Sources, module: nn.Module, caches: Sequence[Tensor]) -> ExportedProgram:
    """Trace one step of T rows. The result is not functionalised: `attend` mutates its caches in place.

    Raises TC0106 for control flow that depends on tensor values or on the number of rows, TC0109 for an
    exception of the model's own code.
    """
    rows = [torch.empty(_ROWS, dtype=torch.int64, device="meta") for _ in range(3)]
    for width in further_inputs(module).values():
        shape, dtype = ((_ROWS, width), torch.float32) if width else ((_ROWS,), torch.int64)
        rows.append(torch.empty(shape, dtype=dtype, device="meta"))
    dim = Dim("T", min=1, max=MAX_ROWS)
    arguments = inspect.signature(module.forward).bind(*rows, *caches).arguments
    # one entry per parameter of forward; *caches is a single parameter that holds a tuple
    shapes = {name: ({0: dim} if any(v is r for r in rows) else _static(v)) for name, v in arguments.items()}

    def run(watch: logging.Handler) -> ExportedProgram:
        # under the meta device, tensors that the model makes without a device are meta tensors too
        meta, model_code = torch.device("meta"), user_code(sources, "TC0109", "the decode step")
        said = io.StringIO()
        quiet = contextlib.redirect_stderr(said)
        with _logs_to(watch), _frames_of(sources), torch.no_grad(), meta, model_code, quiet:
            program = torch.export.export(module, (*rows, *caches), dynamic_shapes=shapes, strict=False)
        # on failure torch writes the partial graph to stderr, which is of no use to the user
        sys.stderr.write(said.getvalue())
        return program

    try:
        return run(logging.NullHandler())
    except TileccError as wrapped:
        cause = wrapped.__cause__
        if cause is None:
            raise
        if _is_about_rows(cause):
            watch = _RowConditions(sources)
            with contextlib.suppress(TileccError):
                run(watch)
            raise error(
                "TC0106",
                f"the decode step is not defined for every number of rows from 1 to {MAX_ROWS}",
                span=watch.found or Span(str(sources.model_file)),
                help="write shapes in terms of `tokens.shape[0]`, without comparing it with a number",
            ) from cause
        if _is_data_dependent(cause):
            raise error(
                "TC0106",
                "the decode step has Python control flow that depends on the values of a tensor",
                span=sources.span_of_exception(cause),
                help="decide in `decode_step(config)`: the step must be the same graph for every input",
            ) from cause
        raise


def _static(value: object) -> object:
    return (None,) * len(value) if isinstance(value, tuple) else None


def _chain(exc: BaseException) -> list[BaseException]:
    chain: list[BaseException] = [exc]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def _is_about_rows(exc: BaseException) -> bool:
    """Whether export failed because the graph would hold only for some numbers of rows."""
    return "Constraints violated" in str(exc) or any(
        isinstance(e, ConstraintViolationError) for e in _chain(exc)
    )


def _is_data_dependent(exc: BaseException) -> bool:
    """Whether export failed because Python asked for the value of a tensor."""
    if any(isinstance(e, GuardOnDataDependentSymNode) for e in _chain(exc)):
        return True
    return _DATA_DEPENDENT.search(f"{type(exc).__name__}: {exc}") is not None


class _ModelFrames(set[tuple[str, str]]):
    """The (file, function) pairs of the model's own code, as a set that is not spelled out."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources

    def __contains__(self, frame: object) -> bool:
        return isinstance(frame, tuple) and self.sources.relative(frame[0]) is not None


@contextlib.contextmanager
def _frames_of(sources: Sources) -> Iterator[None]:
    """Have stack traces of nodes keep every frame of the model.

    By itself torch keeps only functions named `forward`, which would lose the line in a helper function. The
    list of further functions is not public; without it locations are those of `forward`.
    """
    kept = getattr(torch.fx.proxy, "_STACK_TRACE_ANCHORS", None)
    if kept is None:
        yield
        return
    torch.fx.proxy._STACK_TRACE_ANCHORS = _ModelFrames(sources)
    try:
        yield
    finally:
        torch.fx.proxy._STACK_TRACE_ANCHORS = kept


class _RowConditions(logging.Handler):
    """Finds the user's line that first puts a condition on T.

    Export checks its constraints only at the end and does not say where they come from. It logs each one
    when it meets it, while the user's frame is still on the stack.
    """

    def __init__(self, sources: Sources) -> None:
        super().__init__(logging.INFO)
        self.sources = sources
        self.found: Span | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.found is not None or "[guard added]" not in str(record.msg):
            return
        for frame in reversed(traceback.extract_stack()):
            file = self.sources.relative(frame.filename)
            if file is not None:
                self.found = Span(self.sources.actual(file), frame.lineno or 0)
                return


@contextlib.contextmanager
def _logs_to(handler: logging.Handler) -> Iterator[None]:
    """Send torch's logs to `handler` and drop its warnings: we report what concerns the user ourselves."""
    named = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch")]
    loggers = [(logger, logger.handlers, logger.level) for logger in named if logger.handlers]
    for logger, _, _ in loggers:
        logger.handlers = [handler]
        if handler.level:
            logger.setLevel(handler.level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, handlers, level in loggers:
            logger.handlers = handlers
            logger.setLevel(level)


def module_path(node: FxNode) -> str:
    """Path of the torch module whose forward made the node, such as `layers.3.self_attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""
