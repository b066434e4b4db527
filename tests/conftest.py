"""Shared by all tests: golden files, rewritten by one flag; the command line run in this process."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files of tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>; `pytest --update-golden` writes the file instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"no golden file {path}; make it with `pytest --update-golden`"
        want = path.read_text(encoding="utf-8")
        if text != want:
            lines = difflib.unified_diff(
                want.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
            )
            shown = "\n".join(list(lines)[:60])
            pytest.fail(f"{shown}\n\nif this is intended: pytest --update-golden", pytrace=False)

    return compare


@dataclass(frozen=True)
class Finished:
    """A command line that has ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Finished]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("compile", path, "--target", "sm_90a")` runs one command in this process."""
    from tilecc.cli.main import run_app

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("TILECC_BACKTRACE", raising=False)

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code = run_app([str(a) for a in arguments])
        shown = capsys.readouterr()
        return Finished(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model compiled for sm_90a with a context of 128. Read only: copy it to change it."""
    from tilecc.emit.compiler import compile_model

    models = Path(__file__).resolve().parents[1] / "models"
    out = tmp_path_factory.mktemp("tiny") / "mimo_tiny-sm_90a"
    compile_model(models / "mimo_tiny.py", target="sm_90a", out=out, max_context=128)
    return out
