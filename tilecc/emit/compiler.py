"""compile_model: model file -> package directory. The whole compiler in one function, phase by phase."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from tilecc import __version__
from tilecc.diag import Span, error
from tilecc.diag.model import nearest
from tilecc.emit.cuda import TEMPLATES, emit_cuda, smem_bytes, symbol
from tilecc.emit.dump import Dump
from tilecc.emit.names import status_names
from tilecc.emit.tables import build_tables
from tilecc.ir.attention import KV_FORMATS
from tilecc.ir.graph import Graph
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.program import Program
from tilecc.ir.program_rules import PROGRAM_RULES
from tilecc.ir.read import Ir, read_ir, reading
from tilecc.ir.rows import BASE_ROWS, ROW_COUNTS
from tilecc.ir.tile import TileGraph, Weight
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import expect
from tilecc.package import ImageEntry, Manifest, Region, text_digest
from tilecc.package.manifest import KvFormat
from tilecc.passes.context import Decision, PassContext
from tilecc.passes.pipeline import PROGRAM, SHARD, TILE_PASS_NAMES, lower_to_tiles, run_pass
from tilecc.passes.schedule_file import load_schedule
from tilecc.passes.tile import MAX_GRID
from tilecc.target import find_target
from tilecc.weights.layout import lay_out, matrix_entry, vector_entry

PHASES = ("trace", "shard", *TILE_PASS_NAMES, "tiles", "program", "cuda", "package")


@dataclass(frozen=True)
class CompileResult:
    """What `compile_model` made. `seconds` has one entry per phase; `manifest` is None if a phase stopped it
    earlier."""

    package_dir: Path
    seconds: dict[str, float]
    manifest: Manifest | None
    decisions: tuple[Decision, ...]
    texts: dict[str, str] = field(default_factory=dict)


def compile_model(
    model_file: Path,
    *,
    target: str,
    out: Path,
    config: dict[str, Any] | None = None,
    max_context: int = 1024,
    max_seqs: int = 1,
    max_rows: int = BASE_ROWS,
    grid: int | None = None,
    ranks: int = 1,
    stop_after: str | None = None,
    kv: str = "bf16",
    schedule: Path | None = None,
    taps: tuple[int, ...] = (),
    resume: Path | None = None,
    dump: Path | None = None,
) -> CompileResult:
    """Compile a model file into the package directory `out`, which appears whole or not at all.

    `max_context` in positions, `max_seqs` in sequences, `max_rows` rows of a step (ROW_COUNTS), `grid` the
    default number of CTAs (one per SM), `kv` the format of the KV cache: bf16, or fp8 (e4m3 with scale 1).
    `schedule` is a file of the user's requests to the passes (tilecc.schedules). With `stop_after` (a name of
    PHASES) the texts made so far are returned and nothing is written. `taps` are layers
    whose outputs the step returns, for a draft. `resume` is a file of IR text: what made it is not done
    again, its own sizes, rows, ranks and format of the cache count. `dump` is a folder that gets the IR
    before and after each pass. Raises TileccError for the user's errors: TC01xx model file, TC02xx lowering
    and IR text, TC07xx target, options and schedule.
    """
    machine = find_target(target)
    _check_options(max_context, max_seqs, max_rows, ranks, grid, kv)
    check_output(out)
    start = read_ir(resume) if resume is not None else None
    if isinstance(start, TileGraph | Program):
        if start.target != target:
            raise error(
                "TC0716",
                f"the IR text is for target {start.target}, not {target}",
                span=Span(str(resume), 1),
                help=f"give --target {start.target}, or start from a Graph",
            )
        max_context, max_seqs, max_rows = start.max_context, start.max_seqs, start.max_rows
    if isinstance(start, Graph | TileGraph) and start.ranks > 1:
        ranks = start.ranks
    asked = load_schedule(
        schedule, machine, ranks=ranks, max_context=max_context, max_seqs=max_seqs
    ) if schedule is not None else None  # fmt: skip
    run = _Run(
        model_file, PassContext(machine, max_context, max_seqs, ranks, asked, max_rows), out, stop_after,
        Dump(dump) if dump is not None else None,
    )  # fmt: skip
    if resume is not None:
        with reading(resume, resume.read_text(encoding="utf-8"), "a pass"):
            program = run.lower(start, config, kv, taps)
            source = run.emit(program) if program is not None else ""
    else:
        program = run.lower(start, config, kv, taps)
        source = run.emit(program) if program is not None else ""
    if program is None or not source or stop_after == "cuda":
        return run.result()
    with _timed(run.seconds, "package"):
        manifest = package_program(
            program, run.ctx, run.texts, out,
            model_file=model_file.name, config=config if config is not None else model_config(model_file),
            grid=grid, kv=kv_format(program),
        )  # fmt: skip
    return run.result(manifest)


@dataclass
class _Run:
    """One compilation: what it has made so far."""

    model_file: Path
    ctx: PassContext
    out: Path
    stop_after: str | None
    dump: Dump | None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def result(self, manifest: Manifest | None = None) -> CompileResult:
        return CompileResult(self.out, self.seconds, manifest, tuple(self.ctx.decisions), self.texts)

    def lower(
        self, ir: Ir | None, config: dict[str, Any] | None, kv: str, taps: tuple[int, ...]
    ) -> Program | None:
        """The Program of the model, or of the IR to go on from; None if a phase before it is the last."""
        if ir is None:
            from tilecc.trace.capture import trace_model

            with _timed(self.seconds, "trace"):
                ir = trace_model(self.model_file, config, kv, taps)
                self.texts["00-graph.txt"] = ir.to_text()
            if self.dump is not None:
                self.dump.made("trace", self.texts["00-graph.txt"])
            if self.stop_after == "trace":
                return None
        if isinstance(ir, Graph):
            with _timed(self.seconds, "shard"):
                if ir.ranks == 1:
                    made = run_pass(SHARD.__name__, ir, self.ctx, self.dump)
                    ir = expect(cast(Graph, made), GRAPH_RULES, "graph")
                if ir.ranks > 1 or self.stop_after == "shard":
                    self.texts["05-shard.txt"] = ir.to_text()
            if self.stop_after == "shard":
                return None
        if isinstance(ir, Graph | TileGraph):
            with _timed(self.seconds, "tiles"):
                ir = lower_to_tiles(ir, self.ctx, self.dump, self.stop_after or "")
                if ir.passes == TILE_PASS_NAMES:
                    expect(ir, TILE_RULES, "tiles")
                self.texts["10-tiles.txt"] = ir.to_text()
            if self.stop_after in ("tiles", *TILE_PASS_NAMES):
                return None
            with _timed(self.seconds, "program"):
                ir = cast(Program, run_pass(PROGRAM.__name__, ir, self.ctx, self.dump))
        program = expect(ir, PROGRAM_RULES, "program")
        self.texts["20-program.txt"] = program.to_text()
        if self.stop_after == "program":
            return None
        ranks = max(int(op.constants.get("ranks", 1)) for op in program.classes)
        if ranks > 1:
            raise error(
                "TC0705",
                f"a program of {ranks} ranks cannot be emitted yet",
                note="what one rank is made of can be printed and checked: --to shard, tiles or program",
                help="compile for one rank: --tp 1",
            )
        return program

    def emit(self, program: Program) -> str:
        """The kernel's text."""
        with _timed(self.seconds, "cuda"):
            source = emit_cuda(program, self.model_file.name)
            self.texts["step.cu"] = source
        if self.dump is not None:
            self.dump.made("cuda", source, "cu")
        return source


def _check_options(
    max_context: int, max_seqs: int, max_rows: int, ranks: int, grid: int | None, kv: str
) -> None:
    """Raise TileccError TC0703 for a size outside its limits or an unknown format of the cache."""
    limits = (("--max-context", max_context, 1 << 20), ("--max-seqs", max_seqs, 1 << 10), ("--tp", ranks, 64))
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise error(
                "TC0703",
                f"`{name} {value}` is outside 1 to {most}",
                help=f"choose {name} between 1 and {most}",
            )
    if grid is not None and not 1 <= grid <= MAX_GRID:
        raise error(
            "TC0703", f"`--grid {grid}` is outside 1 to {MAX_GRID}", help="choose at most one CTA per SM"
        )
    if kv not in KV_FORMATS:
        raise error(
            "TC0703",
            f"unknown KV cache format `{kv}`",
            note=f"formats: {', '.join(KV_FORMATS)}",
            help=nearest(kv, KV_FORMATS),
        )
    if max_rows not in ROW_COUNTS:
        raise error(
            "TC0703",
            f"`--rows {max_rows}` is none of {', '.join(map(str, ROW_COUNTS))}",
            note="a step is compiled for whole tiles of 8 rows; it may always have fewer",
            help=f"nearest: --rows {min(ROW_COUNTS, key=lambda n: (abs(n - max_rows), n))}",
        )


def kv_format(program: Program) -> str:
    """Format of the KV cache: that of the attention ops, bf16 without any."""
    return next((str(c.constants["kv"]) for c in program.classes if "kv" in c.constants), "bf16")


def package_program(
    program: Program,
    ctx: PassContext,
    texts: dict[str, str],
    out: Path,
    *,
    model_file: str,
    config: dict[str, Any],
    grid: int | None = None,
    kv: str = "bf16",
) -> Manifest:
    """Write the package of a Program whose kernel text is `texts["step.cu"]`; return its manifest."""
    image, image_bytes = lay_out(image_entry(w) for w in program.weights)
    tables = build_tables(program, image)
    manifest = Manifest(
        name=program.name, model_file=model_file, target=ctx.target.name, tilecc_version=__version__,
        config=config, kernel=symbol(program), source=f"kernels/{program.name}.cu", threads=program.threads,
        smem_bytes=smem_bytes(program), default_grid=grid or ctx.target.sms, max_context=ctx.max_context,
        max_seqs=ctx.max_seqs, max_rows=program.max_rows, vocab=program.vocab, hidden=program.hidden,
        image_bytes=image_bytes, image=image, workspace_bytes=program.workspace_bytes,
        workspace=[Region(r.name, r.offset, r.nbytes, "zero") for r in program.workspace],
        kv_bytes=program.kv_bytes, kv_format=cast(KvFormat, kv), tables_bytes=len(tables),
        decisions=[dataclasses.asdict(d) for d in ctx.decisions], names=status_names(program),
    )  # fmt: skip
    return write_package(out, manifest, program, tables, texts)


def image_entry(weight: Weight) -> ImageEntry:
    """The image entry of a weight, not yet placed."""
    if weight.kind == "matrix":
        args = {k: int(v) for k, v in weight.args.items()}
        return matrix_entry(
            weight.name,
            weight.format,  # type: ignore[arg-type]
            weight.rule,  # type: ignore[arg-type]
            weight.sources,
            weight.rows,
            weight.cols,
            weight.experts,
            **args,
        )
    return vector_entry(weight.name, weight.kind, weight.sources, weight.rows, weight.cols, **weight.args)  # type: ignore[arg-type]


def model_config(model_file: Path) -> dict[str, Any]:
    """The configuration that the model file uses by itself."""
    from tilecc.trace.load import import_model

    default = getattr(import_model(model_file), "default_config", dict)
    return dict(default())


def check_output(out: Path) -> None:
    """Raise TC0604 if `out` is there and is neither a package nor an empty directory: it would be
    replaced."""
    if out.is_dir() and ((out / "manifest.json").exists() or not any(out.iterdir())):
        return
    if out.exists():
        raise error(
            "TC0604", f"`{out}` exists and is not a package", help="choose another -o DIR, or empty it"
        )


def write_package(
    out: Path, manifest: Manifest, program: Program, tables: bytes, texts: dict[str, str]
) -> Manifest:
    """Write all files beside `out` under a temporary name, then put them in its place. Returns the manifest
    with the hash of the text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    check_output(out)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for folder in ("kernels", "ir"):
            (work / folder).mkdir()
        (work / manifest.source).write_text(texts["step.cu"])
        for name, text in texts.items():
            if name.endswith(".txt"):
                (work / "ir" / name).write_text(text)
        (work / manifest.tables).write_bytes(tables)
        shutil.copytree(TEMPLATES / "include", work / "include")
        (work / "report.txt").write_text(report(manifest, program))
        manifest = msgspec.structs.replace(manifest, text_sha256=text_digest(work, manifest.source))
        manifest.save(work)
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def report(manifest: Manifest, program: Program) -> str:
    """The compile report: sizes, the program, and every decision with its reason."""
    lines = [
        f"{manifest.name} for {manifest.target}",
        f"  {program.layers} layers, hidden {manifest.hidden}, vocabulary {manifest.vocab},"
        f" context {manifest.max_context}",
        f"  {manifest.threads} threads and {manifest.smem_bytes} B of shared memory per CTA",
        f"  weight image {manifest.image_bytes:,} B, workspace {manifest.workspace_bytes:,} B,"
        f" KV cache {manifest.kv_bytes:,} B in {manifest.kv_format}",
        "",
        "program of one step:",
    ]
    for title, names in (("", program.prologue), ("each layer: ", program.body), ("", program.epilogue)):
        for name in names:
            op = program.op_class(name)
            lines.append(f"  {title}{name} x{op.per_step}  {op.doc}")
    lines += ["", "decisions:"]
    lines += [
        f"  [{d['pass_name']}] {d['subject']}: {d['choice']} ({d['reason']})" for d in manifest.decisions
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 3)
