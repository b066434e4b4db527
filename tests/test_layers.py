"""The import contracts of pyproject.toml hold, and are strong enough to notice an import that breaks them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run([*LINT, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True)


def test_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_contracts_notice_a_wrong_import(tmp_path: Path) -> None:
    """One wrong import per contract, in a small tree with the same module names."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    names = {c["name"] for c in config["contracts"]}
    modules = {
        name.strip()
        for c in config["contracts"]
        for layer in c.get("layers", [])
        for name in layer.split(":")
    }
    modules |= {m for c in config["contracts"] for m in c.get("source_modules", [])}
    modules |= {
        m for c in config["contracts"] for m in c.get("forbidden_modules", []) if m.startswith("tilecc")
    }
    (tmp_path / "tilecc").mkdir()
    (tmp_path / "tilecc" / "__init__.py").touch()
    for module in modules:
        folder = tmp_path.joinpath(*module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert lint(tmp_path).returncode == 0, lint(tmp_path).stdout

    wrong = {
        "tilecc/ir": "import tilecc.passes",  # a lower layer reaches up
        "tilecc/passes": "import torch",
        "tilecc/runtime": "import tilecc.emit",
        "tilecc/build": "import torch",
        "tilecc/trace": "import tvm",
        "tilecc/package": "import numpy",
    }
    for folder, text in wrong.items():
        (tmp_path / folder / "__init__.py").write_text(text + "\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    broken = {name for name in names if f"{name} BROKEN" in " ".join(done.stdout.split())}
    assert broken == names
