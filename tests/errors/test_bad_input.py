"""Bad input, end to end: each gives one error with code, place, limit and fix, and no half-written output."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.errors import broken
from tests.errors.broken import CHECKPOINT, Header
from tilecc.build import emulator
from tilecc.diag import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "mimo_tiny.py"
SMALL = ROOT / "tests" / "trace" / "small_model.py"


def check(done: Any, code: str, *parts: str, fix: bool = True) -> None:
    """The run failed with this one code, said all ``parts``, and printed no data."""
    assert done.code == CATALOGUE[code].exit_code, done.err
    assert {line[6:12] for line in done.err.splitlines() if line.startswith("error[")} == {code}, done.err
    for part in parts:
        assert part in done.err, f"{part!r} is not in:\n{done.err}"
    assert not fix or "= help: " in done.err, done.err
    assert f"tilecc explain {code}" in done.err
    assert done.out == "" and "Traceback" not in done.err


# ------------------------------------------------------------------------------------------- model file


def model_without_step(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "nothing.py"
    path.write_text("import torch\n\nclass Net(torch.nn.Module): ...\n\ndef build(): ...\n")
    return path, [f"{path}:1", "it defines: build", "def decode_step"]


def model_with_unknown_op(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "gelu.py"
    text = SMALL.read_text()
    path.write_text(text.replace("F.silu(self.gate_proj(y))", "F.gelu(self.gate_proj(y))"))
    line = next(n for n, one in enumerate(path.read_text().splitlines(), 1) if "F.gelu" in one)
    return path, [f"{path}:{line}", "gelu", "rms_norm", "attend", "experts"]


def model_that_raises(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "raises.py"
    path.write_text("def decode_step(config=None):\n    return undefined_name\n")
    return path, [f"{path}:2", "NameError"]


def model_that_returns_text(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "text.py"
    path.write_text('def decode_step(config=None):\n    return "a module"\n')
    return path, [f"{path}:1", "str"]


def model_with_branch(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "branch.py"
    lines = SMALL.read_text().splitlines()
    at = next(n for n, one in enumerate(lines) if "F.silu(self.gate_proj(y))" in one)
    lines.insert(at, "        y = y if y.sum() > 0 else y * 2.0")
    path.write_text("\n".join(lines) + "\n")
    return path, [f"{path}:{at + 1}"]


def model_that_is_missing(folder: Path) -> tuple[Path, list[str]]:
    return folder / "missing.py", ["missing.py"]


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("TC0101", model_that_is_missing),
        ("TC0102", model_without_step),
        ("TC0103", model_that_raises),
        ("TC0104", model_that_returns_text),
        ("TC0105", model_with_unknown_op),
        ("TC0106", model_with_branch),
    ],
)
def test_model_file(
    cli: Any, tmp_path: Path, code: str, make: Callable[[Path], tuple[Path, list[str]]]
) -> None:
    path, parts = make(tmp_path)
    before = sorted(p for p in tmp_path.iterdir() if p.name != "__pycache__")
    done = cli("compile", path, "--target", "sm_90a", "-o", tmp_path / "out")
    check(done, code, *parts, fix=code in ("TC0102", "TC0104"))
    assert sorted(p for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_errors_as_json(cli: Any, tmp_path: Path) -> None:
    path, _ = model_without_step(tmp_path)
    done = cli("compile", path, "--target", "sm_90a", "--json")
    (found,) = json.loads(done.out)["diagnostics"]
    assert found["code"] == "TC0102" and found["spans"][0]["file"] == str(path)
    assert done.code == 1 and "error[TC0102]" in done.err


# ---------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("code", "change", "key"),
    [
        ("TC0107", {"num_attention_heads": 6}, "num_attention_heads"),
        ("TC0107", {"hidden_size": None}, "hidden_size"),
        ("TC0107", {"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern"),
        ("TC0202", {"moe_intermediate_size": 100}, "moe_intermediate_size"),
        ("TC0306", {"quantization_config": {"quant_method": "awq"}}, "quant_method"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configuration(cli: Any, tmp_path: Path, code: str, change: dict[str, Any], key: str) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text()) | change
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config, indent=2))
    line = next(n for n, one in enumerate(file.read_text().splitlines(), 1) if f'"{key}"' in one)
    done = cli(
        "compile",
        ROOT / "models" / "mimo_v2.py",
        "--target",
        "sm_90a",
        "--config",
        file,
        "-o",
        tmp_path / "o",
    )
    check(done, code, f"`{key}`", f"{file}:{line}:", fix=False)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("text", "part"), [("{\n  'a': 1}", "config.json:2:3"), ("[]", "a list"), (None, "No such file")]
)
def test_configuration_file(cli: Any, tmp_path: Path, text: str | None, part: str) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    done = cli("compile", MODEL, "--target", "sm_90a", "--config", file)
    check(done, "TC0108", str(file), part, fix=False)


# ------------------------------------------------------------------------------------------- checkpoint

QKV = "model.layers.1.self_attn.qkv_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def without_tensor(header: Header, data: bytearray) -> None:
    del header[EXPERT]


def wrong_shape(header: Header, data: bytearray) -> None:
    header["lm_head.weight"]["shape"].reverse()


def wrong_type(header: Header, data: bytearray) -> None:
    header[EXPERT]["dtype"] = "F8_E4M3"


def bad_mxfp4_scale(header: Header, data: bytearray) -> None:
    data[header[f"{EXPERT}_scale"]["data_offsets"][0] + 2 * 8 + 5] = 255


def nan_fp8_code(header: Header, data: bytearray) -> None:
    data[header[QKV]["data_offsets"][0] + 256 + 7] = 0x7F


BAD_CHECKPOINTS: list[tuple[str, Callable[[Path], Path], list[str]]] = [
    ("TC0301", lambda folder: folder / "nowhere", ["nowhere"]),
    ("TC0302", lambda folder: broken.edit(folder, without_tensor), [EXPERT]),
    (
        "TC0303",
        lambda folder: broken.edit(folder, wrong_shape),
        ["lm_head.weight", "[256, 4096]", "[4096, 256]"],
    ),
    ("TC0304", lambda folder: broken.edit(folder, wrong_type), [EXPERT]),
    ("TC0305", broken.truncate, ["model.safetensors", "1,000,000"]),
    (
        "TC0306",
        lambda folder: broken.copy(folder, {"quantization_config": {"quant_method": "gptq"}}),
        ["gptq"],
    ),
    (
        "TC0307",
        lambda folder: broken.edit(folder, bad_mxfp4_scale),
        [f"{EXPERT}_scale", "[2, 5]", "255", "224"],
    ),
]


@pytest.mark.parametrize("device", ["reference", "emulator"])
@pytest.mark.parametrize(("code", "make", "parts"), BAD_CHECKPOINTS, ids=[c for c, _, _ in BAD_CHECKPOINTS])
def test_checkpoint(
    cli: Any,
    tmp_path: Path,
    tiny_package: Path,
    code: str,
    make: Callable[[Path], Path],
    parts: list[str],
    device: str,
) -> None:
    """Both devices refuse a bad checkpoint in the same way, and no file is written."""
    folder = make(tmp_path)
    # A package says first that its own configuration is another one (TC0405).
    model = tiny_package if device == "emulator" and code != "TC0306" else MODEL
    file = tmp_path / "logits.npy"
    done = cli("logits", model, "--checkpoint", folder, "--ids", "1,2", "-o", file, "--device", device)
    check(done, code, *parts)
    assert not file.exists()


def test_nan_code(cli: Any, tmp_path: Path, tiny_package: Path) -> None:
    folder = broken.edit(tmp_path, nan_fp8_code)
    done = cli("logits", tiny_package, "--checkpoint", folder, "--ids", "1", "-o", tmp_path / "l.npy")
    check(done, "TC0308", QKV, "[1, 7]")


def test_all_missing_tensors_are_listed(cli: Any, tmp_path: Path) -> None:
    def change(header: Header, data: bytearray) -> None:
        del header["lm_head.weight"], header["model.norm.weight"]

    folder = broken.edit(tmp_path, change)
    done = cli(
        "logits",
        MODEL,
        "--checkpoint",
        folder,
        "--ids",
        "1",
        "-o",
        tmp_path / "l.npy",
        "--device",
        "reference",
    )
    check(done, "TC0302", "`lm_head.weight`", "`model.norm.weight`", "2 errors")


# ---------------------------------------------------------------------------------------------- runtime


def test_prompt_longer_than_the_context(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    long = ("--prompt", "x = 1\n" * 100, "--max-tokens", 8)
    done = cli("run", tiny_package, "--checkpoint", CHECKPOINT, *long, "--report", tmp_path / "report")
    check(done, "TC0401", "128", "--max-context")
    assert not (tmp_path / "report").exists()


def test_no_gpu(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has an NVIDIA driver")
    except OSError:
        pass
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    done = cli(
        "run", package, "--checkpoint", CHECKPOINT, "--prompt", "x", "--max-tokens", 1, "--device", "cuda"
    )
    # Without nvcc the library cannot be built either: then that is the error.
    code = "TC0402" if "TC0402" in done.err else "TC0501"
    check(done, code)


def test_rows_of_no_program(cli: Any) -> None:
    done = cli("compile", MODEL, "--target", "sm_90a", "--rows", 24)
    check(done, "TC0703", "`--rows 24` is none of 8, 16, 32, 64")
    assert "nearest: --rows 16" in done.err


@pytest.mark.parametrize(
    ("code", "arguments", "part"),
    [
        ("TC0403", ["--ids", ""], "--ids"),
        ("TC0403", ["--ids", "1,4096"], "4096"),
        ("TC0703", ["--ids", "1;2"], "`1;2`"),
        ("TC0703", ["--ids", "1", "-o", "nowhere/x.npy"], "nowhere"),
        ("TC0703", ["--ids", "1", "-o", "x.txt"], "x.npy"),
        ("TC0406", ["--ids", "1", "--device", "emulater"], "did you mean `emulator`?"),
        ("TC0703", ["--ids", "1", "--rounding", "fp16"], "bf16, f32"),
    ],
)
def test_arguments_of_logits(
    cli: Any, tiny_package: Path, tmp_path: Path, code: str, arguments: list[str], part: str
) -> None:
    file = tmp_path / "out.npy"
    done = cli("logits", tiny_package, "--checkpoint", CHECKPOINT, "-o", file, *arguments)
    check(done, code, part, fix=False)
    assert not any(tmp_path.iterdir())


def test_empty_prompt(cli: Any, tiny_package: Path) -> None:
    check(cli("run", tiny_package, "--checkpoint", CHECKPOINT, "--prompt", ""), "TC0403", "empty")


def test_package_of_another_configuration(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    folder = broken.copy(tmp_path, {"rope_theta": 5000})
    done = cli("logits", tiny_package, "--checkpoint", folder, "--ids", "1", "-o", tmp_path / "l.npy")
    check(done, "TC0405", "`rope_theta`", "5000", "10000000")


def test_checkpoint_without_tokenizer(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    folder = broken.copy(tmp_path)
    (folder / "tokenizer.json").unlink()
    done = cli("run", tiny_package, "--checkpoint", folder, "--prompt", "x")
    check(done, "TC0408", "tokenizer.json")


def test_package_whose_model_file_is_gone(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    manifest = package / "manifest.json"
    manifest.write_text(manifest.read_text().replace("mimo_tiny.py", "gone.py"))
    done = cli("run", package, "--checkpoint", CHECKPOINT, "--prompt", "x", "--device", "reference")
    check(done, "TC0409", "`gone.py`")


# -------------------------------------------------------------------------------------------- toolchain


def test_toolchain_missing(
    cli: Any, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILECC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TILECC_NVCC", str(tmp_path / "nvcc"))
    monkeypatch.setenv("TILECC_CXX", str(tmp_path / "g++"))
    emulator.compiler.cache_clear()
    out = tmp_path / "out"
    check(
        cli("compile", MODEL, "--target", "sm_90a", "-o", out, "--build"), "TC0501", "TILECC_NVCC", fix=False
    )
    done = cli("logits", tiny_package, "--checkpoint", CHECKPOINT, "--ids", "1", "-o", tmp_path / "l.npy")
    emulator.compiler.cache_clear()
    check(done, "TC0503", "TILECC_CXX")


def test_source_that_does_not_compile(
    cli: Any, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel broken by an edit: the first error of g++ with its line in the kernel."""
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    source = package / "kernels" / "mimo_tiny.cu"
    source.write_text(source.read_text() + "\nint broken( {\n")
    done = cli("logits", package, "--checkpoint", CHECKPOINT, "--ids", "1", "-o", tmp_path / "l.npy")
    check(done, "TC0504", "mimo_tiny.cu", fix=False)


# ---------------------------------------------------------------------------- packages and command line


@pytest.mark.parametrize("field", ["abi_version", "ir_version"])
def test_emulate_refuses_other_versions(cli: Any, tiny_package: Path, tmp_path: Path, field: str) -> None:
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    manifest = package / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {field: 99}))
    done = cli("emulate", package, "--checkpoint", CHECKPOINT, "--seeds", 1)
    check(done, "TC0602", f"{field} 99", f"{field} {facts[field]}")


def test_packages(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    check(cli("inspect", tmp_path), "TC0601", str(tmp_path))
    run = ("--checkpoint", CHECKPOINT, "--prompt", "x", "--max-tokens", 1)
    check(cli("run", tmp_path, *run), "TC0601", str(tmp_path))
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    manifest = package / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 3', '"format_version": 99'))
    check(cli("inspect", package), "TC0602", "99", "2")
    manifest.write_text(text[:200])
    check(cli("inspect", package), "TC0603", str(manifest))
    manifest.write_text(text)
    os.remove(package / "ir" / "10-tiles.txt")
    check(cli("inspect", package, "--as", "tiles"), "TC0603", "ir/10-tiles.txt")
    os.remove(package / "tables.bin")
    check(cli("run", package, *run), "TC0603", "tables.bin")


def test_output_that_is_no_package_is_left_alone(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    check(cli("compile", MODEL, "--target", "sm_90a", "-o", tmp_path), "TC0604", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("code", "command", "parts"),
    [
        ("TC0701", ["compile", MODEL, "--target", "sm_90"], ["`sm_90`", "sm_90a", "sm_100a"]),
        ("TC0704", ["compile", MODEL], ["--target", "sm_90a", "sm_100a"]),
        ("TC0705", ["compile", MODEL, "--target", "sm_90a", "--tp", "2"], ["tiles or program", "2 ranks"]),
        ("TC0703", ["compile", MODEL, "--target", "sm_90a", "--tp", "0"], ["`--tp 0`"]),
        ("TC0703", ["compile", MODEL, "--target", "sm_90a", "--kv", "fp4"], ["`fp4`", "bf16, fp8"]),
        ("TC0706", ["compile", SMALL, "--target", "sm_90a", "--kv", "fp8"], ["kv_format", "--kv bf16"]),
        ("TC0702", ["explain", "TC0320"], ["`TC0320`", "did you mean"]),
        ("TC0703", ["compile", MODEL, "--target", "sm_90a", "--to", "tils"], ["`tils`", "tiles"]),
        ("TC0703", ["compile", MODEL, "--target", "sm_90a", "--max-context", 0], ["--max-context 0"]),
    ],
)
def test_command_line(cli: Any, code: str, command: list[Any], parts: list[str]) -> None:
    check(cli(*command), code, *parts, fix=False)
