"""The CUDA build and the host launcher, without a GPU: facts of ptxas, symbols, loading, checks, errors."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tilecc.build.host import HOST_TEMPLATES
from tilecc.build.nvcc import BuildReport, build_cuda, find_nvcc
from tilecc.build.ptxas import KernelFacts, parse_ptxas
from tilecc.diag import TileccError, exit_code_of
from tilecc.package import Manifest
from tilecc.runtime.devices.cuda import CudaDevice, Info, LaunchArguments, Library

TARGETS = ["sm_90a", "sm_100a"]
ROOT = Path(__file__).parents[2]


def have_nvcc() -> bool:
    try:
        find_nvcc()
    except TileccError:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not have_nvcc(), reason="no nvcc on this machine")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILECC_CACHE_DIR", str(path))
        yield path


@pytest.fixture(scope="module")
def built(
    make_package: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> tuple[Path, BuildReport]:
    package = make_package(tmp_path_factory.mktemp("sample") / "package")
    return package, build_cuda(package, TARGETS)


@needs_nvcc
def test_one_global_no_stack_no_spills_on_both_targets(built: tuple[Path, BuildReport]) -> None:
    package, report = built
    assert [(k.name, k.target) for k in report.kernels] == [("tilecc_sample", t) for t in TARGETS]
    assert report.problems() == []
    for k in report.kernels:
        assert (k.stack_bytes, k.spill_store_bytes, k.spill_load_bytes) == (0, 0, 0) and 8 < k.registers < 128
    saved = json.loads((package / "build.json").read_text())
    assert saved["kernels"][0]["registers"] == report.kernels[0].registers
    assert "Compiling entry function 'tilecc_sample' for 'sm_100a'" in Path(report.log).read_text()


@needs_nvcc
def test_the_library_exports_its_interface_and_nothing_of_cuda(built: tuple[Path, BuildReport]) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    _, report = built
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", report.library], capture_output=True, text=True
    ).stdout
    strong = {line.split()[2] for line in listed.splitlines() if line.split()[1] in "TDBR"}
    assert strong == {
        *(f"__tvm_ffi_sample_{f}" for f in ("launch", "occupancy", "workspace_bytes")),
        *(f"tilecc_sample_{f}" for f in ("abi_version", "info", "occupancy", "launch", "last_error")),
    }
    undefined = subprocess.run(["nm", "-D", "-u", report.library], capture_output=True, text=True).stdout
    assert "cuda" not in undefined and "cuLaunch" not in undefined


def no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


@needs_nvcc
def test_tvm_ffi_loads_it_and_every_bad_call_says_why(built: tuple[Path, BuildReport]) -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    import torch

    _, report = built
    library = tvm_ffi.load_module(report.library)
    assert library.sample_workspace_bytes() == 384
    byte, word = torch.zeros(512, dtype=torch.uint8), torch.zeros(512, dtype=torch.int32)
    good = [byte, byte, byte, byte, word, word, None, word, word, 1, 0, 0, 0]
    with pytest.raises(TypeError, match=r"sample_launch\(image, tables, kv.*expected 13 arguments, got 2"):
        library.sample_launch(byte, byte)
    with pytest.raises(TypeError, match="argument 0 must be a tensor"):
        library.sample_launch(3, *good[1:])
    with pytest.raises(TypeError, match="argument 9 must be an int"):
        library.sample_launch(*good[:9], "1", *good[10:])
    with pytest.raises(ValueError, match="argument 9 is 0, allowed are 1 to"):
        library.sample_launch(*good[:9], 0, *good[10:])
    with pytest.raises(ValueError, match="`image` must be a CUDA tensor"):
        library.sample_launch(*good)
    if no_gpu():
        with pytest.raises(RuntimeError, match="no usable CUDA device"):
            library.sample_occupancy()


@needs_nvcc
def test_plain_c_interface_without_tvm_ffi(built: tuple[Path, BuildReport]) -> None:
    """In a process of its own, where libtvm_ffi is not loaded."""
    _, report = built
    script = f"""
import ctypes, sys
lib = ctypes.CDLL({report.library!r})
lib.tilecc_sample_last_error.restype = ctypes.c_char_p
words = (ctypes.c_uint32 * 64)()
print(lib.tilecc_sample_abi_version(), lib.tilecc_sample_info(words), lib.tilecc_sample_last_error().decode())
words[0] = {ctypes.sizeof(Info)}
print(lib.tilecc_sample_info(words), list(words[:10]))
words[0] = 8
print(lib.tilecc_sample_launch(words, None), lib.tilecc_sample_last_error().decode())
words[0] = {ctypes.sizeof(LaunchArguments)}
print(lib.tilecc_sample_launch(words, None), lib.tilecc_sample_last_error().decode())
print("tvm_ffi" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, launch_size = ctypes.sizeof(Info), ctypes.sizeof(LaunchArguments)
    assert done.stdout.splitlines() == [
        f"1 -1 sample: struct tilecc_info has another size, this library's has {size} bytes",
        f"0 [{size}, 1, 64, 1024, 4, 8, 40, 2, 64, 32]",
        f"-1 sample: struct tilecc_launch has another size, this library's has {launch_size} bytes",
        "-1 sample: n_steps is 0",
        "False",
    ]


@needs_nvcc
def test_the_cuda_device_says_clearly_that_there_is_no_gpu(built: tuple[Path, BuildReport]) -> None:
    if not no_gpu():
        pytest.skip("this machine has a GPU")
    package, _ = built
    manifest = Manifest.load(package)
    with pytest.raises(TileccError) as caught:
        CudaDevice(package, manifest)
    found = caught.value.diagnostics[0]
    assert found.code == "TC0402" and exit_code_of([found]) == 5
    assert "driver" in found.notes[0] and any("--device emulator" in h for h in found.help)


@needs_nvcc
def test_a_library_of_another_package_is_refused(built: tuple[Path, BuildReport], tmp_path: Path) -> None:
    import msgspec

    package, report = built
    other = msgspec.structs.replace(Manifest.load(package), workspace_bytes=4096)
    with pytest.raises(TileccError) as caught:
        Library(Path(report.library), other)
    found = caught.value.diagnostics[0]
    assert found.code == "TC0603" and found.notes == ("workspace_bytes: library 384, manifest 4096",)
    (tmp_path / "libsample.so").write_bytes(b"not a library")
    with pytest.raises(TileccError, match="TC0603"):
        Library(tmp_path / "libsample.so", other)


@needs_nvcc
def test_objects_are_cached_by_content(
    built: tuple[Path, BuildReport], make_package: Callable[[Path], Path], tmp_path: Path
) -> None:
    _, report = built
    again = build_cuda(make_package(tmp_path / "again"), TARGETS)
    assert again.cached and not report.cached and again.kernels == report.kernels
    assert Path(again.library).is_file()
    changed = make_package(tmp_path / "changed")
    source = changed / "kernels" / "sample.cu"
    source.write_text(source.read_text().replace("3 * sum", "5 * sum"))
    assert not build_cuda(changed, ["sm_90a"]).cached


@needs_nvcc
def test_a_compile_error_is_shown_with_its_line_and_leaves_no_library(
    make_package: Callable[[Path], Path], tmp_path: Path, cache: Path
) -> None:
    package = make_package(tmp_path / "bad")
    source = package / "kernels" / "sample.cu"
    lines = source.read_text().splitlines()
    lines[10] = "constexpr int broken = nowhere;"
    source.write_text("\n".join(lines))
    with pytest.raises(TileccError) as caught:
        build_cuda(package, ["sm_90a"])
    found = caught.value.diagnostics[0]
    assert found.code == "TC0502" and exit_code_of([found]) == 3
    assert 'identifier "nowhere" is undefined' in found.message
    assert found.span is not None and (Path(found.span.file).name, found.span.line) == ("sample.cu", 11)
    assert str(package / "build.log") in found.notes[0] and "nowhere" in (package / "build.log").read_text()
    assert not list(package.glob("*.so")) and not list(cache.glob("nvcc/*.partial*"))


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILECC_NVCC", str(tmp_path / "nvcc"))
    with pytest.raises(TileccError) as caught:
        find_nvcc()
    assert caught.value.diagnostics[0].code == "TC0501" and exit_code_of(caught.value.diagnostics) == 3
    assert str(tmp_path / "nvcc") in caught.value.diagnostics[0].message
    fake = tmp_path / "nvcc"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    assert find_nvcc() == fake
    monkeypatch.delenv("TILECC_NVCC")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TileccError, match="TC0501"):
        find_nvcc()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nvcc() == fake


@pytest.mark.parametrize("target", ["hopper", "sm_9", "compute_90a", "sm_90x"])
def test_unknown_targets(make_package: Callable[[Path], Path], tmp_path: Path, target: str) -> None:
    with pytest.raises(TileccError) as caught:
        build_cuda(make_package(tmp_path / "p"), [target])
    assert caught.value.diagnostics[0].code == "TC0506" and exit_code_of(caught.value.diagnostics) == 2


def test_missing_tvm_ffi_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilecc.build.host import tvm_ffi_include

    assert (tvm_ffi_include() / "tvm" / "ffi" / "c_api.h").is_file()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TileccError, match="TC0505"):
        tvm_ffi_include()


@pytest.mark.parametrize("compiler,standard", [("gcc", "c11"), ("g++", "c++17")])
def test_the_c_header_compiles_alone_and_matches_the_mirrors(
    tmp_path: Path, compiler: str, standard: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source = tmp_path / ("a.c" if compiler == "gcc" else "a.cc")
    source.write_text(
        '#include "tilecc.h"\n#include <stdio.h>\nTILECC_KERNEL_API(mimo_tiny);\n'
        'int main(void) { printf("%zu %zu %d\\n", sizeof(struct tilecc_info), sizeof(struct tilecc_launch),'
        " TILECC_HOST_ABI_VERSION); return 0; }\n"
    )
    include = [f"-I{HOST_TEMPLATES}", f"-I{ROOT / 'templates' / 'include'}"]
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([compiler, *flags, *include, str(source), "-o", str(tmp_path / "a")], check=True)
    printed = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(ctypes.sizeof(Info)), str(ctypes.sizeof(LaunchArguments)), "1"]


PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 9 barriers, 8 bytes cumulative stack size, 40 bytes smem, 452 bytes
cmem[0] ptxas info    : Function properties for helper
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_ptxas_lines_are_read() -> None:
    facts = KernelFacts("k", "sm_90a", 168, 8, 4, 12, 40, 9)
    assert parse_ptxas(PTXAS) == [facts]
    helper_first = PTXAS.replace(
        "ptxas info    : Function properties for k\n",
        "ptxas info    : Function properties for helper\n    16 bytes stack frame, 0 bytes spill stores, "
        "0 bytes spill loads\nptxas info    : Function properties for k\n",
    )
    assert parse_ptxas(helper_first) == [facts]


def test_mixed_lines_of_two_ptxas_are_not_taken_for_facts() -> None:
    a, b = PTXAS.splitlines()[1:5], PTXAS.replace("sm_90a", "sm_100a").splitlines()[1:5]
    mixed = "\n".join(line for pair in zip(a, b, strict=True) for line in pair)
    assert {k.target for k in parse_ptxas(mixed)} != {"sm_90a", "sm_100a"}


def test_problems_name_target_and_numbers() -> None:
    def report(kernels: list[KernelFacts]) -> BuildReport:
        return BuildReport(
            library="l", targets=["sm_90a"], kernels=kernels, log="", compiler="", seconds=0.0, cached=False
        )

    clean = KernelFacts("k", "sm_90a", 100, 0, 0, 0, 0, 1)
    assert report([clean]).problems() == []
    assert report([]).problems() == ["sm_90a: 0 __global__ functions, one expected"]
    assert report([clean, clean]).problems() == ["sm_90a: 2 __global__ functions, one expected"]
    (spilled,) = report(parse_ptxas(PTXAS)).problems()
    assert spilled == "sm_90a: k has 8 bytes of stack, 4 + 12 bytes spilled"


def test_building_imports_neither_torch_nor_tvm() -> None:
    script = (
        "import sys, tilecc.build.nvcc; print([m for m in ('torch', 'tvm', 'tvm_ffi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
