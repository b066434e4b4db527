"""The manifest: round trip, equal bytes, atomic writing, and refusal of other versions and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilecc.diag import TileccError
from tilecc.package import (
    ABI_VERSION,
    FORMAT_VERSION,
    IR_VERSION,
    MANIFEST_NAME,
    Manifest,
    Region,
    text_digest,
    text_files,
)
from tilecc.weights.layout import lay_out, matrix_entry, vector_entry


def sample() -> Manifest:
    image, total = lay_out(
        [
            vector_entry("norm", "norm", ["model.norm.weight"], 1, 96),
            matrix_entry("experts", "mxfp4", "gate_up", ["g.{e}.weight", "u.{e}.weight"], 64, 96, 4),
            vector_entry("rope", "rope", [], 64, 8, theta=1e4),
        ]
    )
    return Manifest(
        name="sample",
        model_file="models/sample.py",
        target="sm_90a",
        tilecc_version="0.1",
        config={"hidden_size": 96, "nested": {"a": [1, 2.5, None]}},
        kernel="tilecc_sample",
        source="kernels/sample.cu",
        threads=384,
        smem_bytes=200_000,
        default_grid=132,
        max_context=64,
        max_seqs=2,
        vocab=256,
        hidden=96,
        image_bytes=total,
        image=image,
        workspace_bytes=4096,
        workspace=[Region("counters", 0, 1024), Region("x", 1024, 3072, "none")],
        kv_bytes=8192,
        tables_bytes=512,
        decisions=[{"pass": "place", "reason": "fits"}],
    )


def test_round_trip_is_exact_and_bytes_are_stable(tmp_path: Path) -> None:
    manifest = sample()
    path = manifest.save(tmp_path)
    assert path == tmp_path / MANIFEST_NAME
    assert Manifest.load(tmp_path) == manifest == Manifest.load(path)
    first = path.read_bytes()
    Manifest.load(path).save(path)
    assert path.read_bytes() == first
    assert manifest.entry("experts").experts == 4
    with pytest.raises(KeyError):
        manifest.entry("nothing")


def test_failed_save_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sample().save(tmp_path)
    before = path.read_bytes()

    def broken(source: str, target: str) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="no space"):
        sample().save(tmp_path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [MANIFEST_NAME]


@pytest.mark.parametrize(
    "field,number",
    [("format_version", FORMAT_VERSION), ("abi_version", ABI_VERSION), ("ir_version", IR_VERSION)],
)
def test_other_versions_are_refused_with_both_numbers(tmp_path: Path, field: str, number: int) -> None:
    path = sample().save(tmp_path)
    # A future file may have fields and shapes that this version cannot read: only the number counts.
    text = json.loads(path.read_text()) | {field: 99, "image": "somewhere else"}
    path.write_text(json.dumps(text))
    with pytest.raises(TileccError) as caught:
        Manifest.load(path)
    found = caught.value.diagnostics[0]
    assert found.code == "TC0602" and f"{field} 99" in found.message and f"{field} {number}" in found.message


@pytest.mark.parametrize(
    "text", ["", "{", '{"format_version": 3, "abi_version": 1, "ir_version": 1, "name": 3}', "[]"]
)
def test_damaged_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(TileccError) as caught:
        Manifest.load(tmp_path)
    found = caught.value.diagnostics[0]
    assert found.code == "TC0603" and found.span is not None and found.span.file.endswith(MANIFEST_NAME)


def test_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    for path in [tmp_path, tmp_path / "README.md", tmp_path / "missing"]:
        with pytest.raises(TileccError) as caught:
            Manifest.load(path)
        assert (
            caught.value.diagnostics[0].code == "TC0601" and str(path) in caught.value.diagnostics[0].message
        )


def test_text_digest_sees_every_edit_but_those_of_primitive_and_host_headers(tmp_path: Path) -> None:
    for name in (
        "kernels/a.cu",
        "include/op.cuh",
        "include/p.h",
        "include/tk_prim.cuh",
        "include/tilecc.h",
        "include/tilecc_ffi.h",
        "include/readme.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    named = [p.relative_to(tmp_path).as_posix() for p in text_files(tmp_path, "kernels/a.cu")]
    assert named == ["kernels/a.cu", "include/op.cuh", "include/p.h"]
    seen = {text_digest(tmp_path, "kernels/a.cu")}
    for name in named:
        (tmp_path / name).write_text("other")
        seen.add(text_digest(tmp_path, "kernels/a.cu"))
    assert len(seen) == 4
    for name in ("tk_prim.cuh", "tilecc.h", "tilecc_ffi.h"):
        (tmp_path / "include" / name).write_text("other")
    assert text_digest(tmp_path, "kernels/a.cu") in seen
    with pytest.raises(OSError):
        text_digest(tmp_path, "kernels/b.cu")


def test_program_of_another_ir_version_is_refused(tmp_path: Path) -> None:
    """A manifest that is older than the field counts as version 0."""
    path = sample().save(tmp_path)
    fields = json.loads(path.read_text())
    del fields["ir_version"]
    path.write_text(json.dumps(fields))
    with pytest.raises(TileccError) as caught:
        Manifest.load(path)
    assert "ir_version 0, this tilecc reads ir_version 1" in caught.value.diagnostics[0].message
