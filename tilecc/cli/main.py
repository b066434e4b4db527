"""The `tilecc` program: the list of commands and the one place where errors become text and exit codes."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from tilecc import __version__
from tilecc.cli.check import check_command
from tilecc.cli.compile import compile_command
from tilecc.cli.console import emit, emit_json, say
from tilecc.cli.doctor import doctor_command
from tilecc.cli.emulate import emulate_command
from tilecc.cli.explain import explain_command
from tilecc.cli.inspect import inspect_command
from tilecc.cli.lint import lint_command
from tilecc.cli.logits import logits_command
from tilecc.cli.ops import ops_command
from tilecc.cli.opt import opt_command
from tilecc.cli.passes import passes_command
from tilecc.cli.run import run_command
from tilecc.cli.simulate import simulate_command
from tilecc.cli.targets import targets_command
from tilecc.diag import TileccError, exit_code_of, render_all, to_json
from tilecc.diag.render import wants_color

EXIT_INTERNAL = 70
EXIT_INTERRUPT = 130

EPILOG = (
    "Exit codes: 0 ok, 1 error in the model, checkpoint or kernel, 2 usage, 3 compiler missing or failed, 4"
    " results differ, 5 no usable device, 70 internal error, 130 interrupted."
)

app = typer.Typer(
    name="tilecc",
    help="Compile a PyTorch decode step into one persistent CUDA kernel, run it, and look inside.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        emit(f"tilecc {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


app.command("compile")(compile_command)
app.command("run")(run_command)
app.command("emulate")(emulate_command)
app.command("check")(check_command)
app.command("lint")(lint_command)
app.command("logits")(logits_command)
app.command("inspect")(inspect_command)
app.command("simulate")(simulate_command)
app.command("doctor")(doctor_command)
app.command("explain")(explain_command)
app.command("targets")(targets_command)
app.command("passes")(passes_command)
app.command("opt")(opt_command)
app.command("ops")(ops_command)


def main() -> None:
    """Run the program and exit. User errors are rendered; anything else is an internal error (exit 70)."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Run one command line in this process and return its exit code."""
    try:
        app(arguments, prog_name="tilecc")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except TileccError as found:
        return _report(found, as_json="--json" in arguments)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPT
    except BrokenPipeError:
        # The reader of our stdout left (`tilecc inspect ... | head`): nothing is wrong on our side.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as bug:
        return _internal(bug)
    return 0


def _report(found: TileccError, as_json: bool) -> int:
    if _backtrace():
        traceback.print_exc()
    if as_json:
        emit_json({"diagnostics": [to_json(d) for d in found.diagnostics]})
    say(render_all(found.diagnostics, color=wants_color(sys.stderr)), end="")
    return exit_code_of(found.diagnostics)


def _internal(bug: Exception) -> int:
    if _backtrace():
        traceback.print_exc()
    frames = traceback.extract_tb(bug.__traceback__)
    where = f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown place"
    text = str(bug).strip().partition("\n")[0]
    say(f"internal error: {type(bug).__name__}: {text}" if text else f"internal error: {type(bug).__name__}")
    say(f"  --> {where}")
    say("  = note: this is a bug of tilecc, not of your input")
    if not _backtrace():
        say("  = help: TILECC_BACKTRACE=1 prints the whole traceback; please report it with the command line")
    return EXIT_INTERNAL


def _backtrace() -> bool:
    return os.environ.get("TILECC_BACKTRACE", "") not in ("", "0")
