"""--dump, --to, --from and `tilecc opt`: every text that the compiler writes is a place to go on from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import MODEL
from tests.errors.test_bad_input import check
from tilecc.passes.pipeline import PASSES

NAMES = [one.__name__ for one in PASSES]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a dump, and the package that was made with it."""
    from tilecc.emit.compiler import compile_model

    folder = tmp_path_factory.mktemp("dump")
    compile_model(MODEL, target="sm_90a", out=folder / "package", max_context=64, dump=folder / "ir")
    return folder / "ir", folder / "package"


def test_dump_has_every_pass_before_and_after(dumped: tuple[Path, Path]) -> None:
    files = sorted(p.name for p in dumped[0].iterdir())
    want = ["01-trace.after.txt"]
    for number, name in enumerate(NAMES, 2):
        want += [f"{number:02}-{name}.after.txt", f"{number:02}-{name}.before.txt"]
    assert files == sorted([*want, f"{len(NAMES) + 2:02}-cuda.after.cu"])
    texts = {p.name: p.read_text() for p in dumped[0].iterdir()}
    for number, name in enumerate(NAMES[1:], 3):
        earlier = f"{number - 1:02}-{NAMES[number - 3]}.after.txt"
        assert texts[f"{number:02}-{name}.before.txt"] == texts[earlier], name
    package = dumped[1]
    assert (
        texts["12-cuda.after.cu" if len(NAMES) == 10 else files[-1]]
        == (package / "kernels" / "mimo_tiny.cu").read_text()
    )
    assert texts[f"{len(NAMES) + 1:02}-program.after.txt"] == (package / "ir" / "20-program.txt").read_text()


def test_a_dump_replaces_an_older_one_and_leaves_other_files(tmp_path: Path, cli: Any) -> None:
    for name in ("77-old.after.txt", "notes.txt"):
        (tmp_path / name).write_text("x")
    args = ("compile", MODEL, "--target", "sm_90a", "--to", "fuse", "--dump", tmp_path)
    assert cli(*args).code == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert "notes.txt" in names and "77-old.after.txt" not in names and "03-fuse.after.txt" in names
    (tmp_path / "file").write_text("x")
    check(cli(*args[:-1], tmp_path / "file"), "TC0703", "--dump")


def test_a_pass_that_fails_leaves_its_input(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    text = next(dumped[0].glob("*-fuse.after.txt")).read_text()
    (size,) = set(re.findall(r'"rotary": \d+', text))
    broken, folder = tmp_path / "broken.txt", tmp_path / "ir"
    broken.write_text(text.replace(size, '"rotary": 0'))
    done = cli(
        "compile", MODEL, "--target", "sm_90a", "--from", broken, "--dump", folder, "-o", tmp_path / "p"
    )
    check(done, "TC0222", f"{broken}:", "rotary size is 0")
    assert [p.name for p in folder.iterdir()] == ["01-tile.before.txt"]
    assert (folder / "01-tile.before.txt").read_text() == broken.read_text()


SOME = ("trace", "edges", "program")
"""Of the texts to go on from, those that every run of the tests tries; nightly runs try all."""


@pytest.mark.parametrize(
    "after", [pytest.param(n, marks=() if n in SOME else pytest.mark.nightly) for n in ("trace", *NAMES)]
)
def test_going_on_from_each_text_gives_the_same_package(
    after: str, dumped: tuple[Path, Path], tmp_path: Path, cli: Any
) -> None:
    ir, package = dumped
    (text,) = ir.glob(f"*-{after}.after.txt")
    out = tmp_path / "package"
    done = cli("compile", MODEL, "--target", "sm_90a", "--max-context", "64", "--from", text, "-o", out)
    assert done.code == 0, done.err
    for name in ("kernels/mimo_tiny.cu", "ir/20-program.txt", "tables.bin"):
        assert (out / name).read_bytes() == (package / name).read_bytes(), name


def test_to_stops_after_any_pass(dumped: tuple[Path, Path], cli: Any) -> None:
    text = next(dumped[0].glob("*-edges.after.txt"))
    shown = cli("compile", MODEL, "--target", "sm_90a", "--max-context", "64", "--to", "edges")
    assert shown.code == 0 and shown.out == text.read_text()
    further = cli("compile", MODEL, "--target", "sm_90a", "--from", text, "--to", "roles")
    assert further.out == next(dumped[0].glob("*-roles.after.txt")).read_text()
    check(cli("compile", MODEL, "--target", "sm_90a", "--to", "edge"), "TC0703", "did you mean `edges`?")


def test_opt_runs_passes_on_text(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    graph = next(dumped[0].glob("*-trace.after.txt"))
    out = tmp_path / "tiles.txt"
    done = cli("opt", graph, "-p", ",".join(NAMES[:-1]), "--max-context", "64", "-o", out)
    assert done.code == 0 and done.out == "", done.err
    assert out.read_text() == (dumped[1] / "ir" / "10-tiles.txt").read_text()
    again = cli("opt", out, "-p", "place")
    assert again.code == 0 and "passes=[" in again.out and '"roles"' not in again.out.split("passes=[")[1]
    both = cli("opt", out, "--passes", "program")
    assert both.out == (dumped[1] / "ir" / "20-program.txt").read_text()


def test_opt_with_a_schedule(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    plan = tmp_path / "plan.py"
    plan.write_text("def schedule(s):\n    s.ring('weights', depth=3)\n")
    tiles = dumped[1] / "ir" / "10-tiles.txt"
    assert 'RingSpec("weights", slots=3' in cli("opt", tiles, "-p", "rings", "--schedule", plan).out
    plan.write_text("def schedule(s):\n    s.ring('weights', depth=300)\n    s.ring('weights', dept=3)\n")
    done = cli("opt", tiles, "-p", "rings", "--schedule", plan)
    assert done.code == 1 and "TC0713" in done.err and "TC0711" in done.err


def test_opt_refuses(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    graph, tiles = next(dumped[0].glob("*-trace.after.txt")), dumped[1] / "ir" / "10-tiles.txt"
    check(cli("opt", tiles, "-p", "edgs"), "TC0703", "did you mean `edges`?")
    check(cli("opt", tiles, "-p", ","), "TC0703", "no pass was named")
    check(cli("opt", tiles, "-p", "fuse"), "TC0716", "takes a Graph")
    check(cli("opt", graph, "-p", "rings"), "TC0716", "takes a TileGraph")
    check(cli("opt", next(dumped[0].glob("*-tile.after.txt")), "-p", "rings"), "TC0716", "-p order,edges,")
    check(cli("opt", tmp_path / "none.txt", "-p", "rings"), "TC0703", "none.txt")


def test_text_for_another_target(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    text = next(dumped[0].glob("*-tile.after.txt"))
    done = cli("compile", MODEL, "--target", "sm_100a", "--from", text, "-o", tmp_path / "out")
    check(done, "TC0716", f"{text}:1", "--target sm_90a")
    assert not (tmp_path / "out").exists()


def test_all_mistakes_of_a_text_at_once(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    """Malformed text: each mistake with its line. Well-formed text that breaks rules: each in the file."""
    lines = (dumped[1] / "ir" / "20-program.txt").read_text().split("\n")
    broken = tmp_path / "broken.txt"

    def edit(old: str, new: str) -> int:
        at = next(i for i, line in enumerate(lines) if old in line)
        lines[at] = lines[at].replace(old, new, 1)
        return at + 1

    at = [
        edit("RoleSpec(", "RolSpec("),
        edit("slot_bytes=", "slot_byte="),
        edit("per_step=1", 'per_step="1"'),
    ]
    broken.write_text("\n".join(lines))
    done = cli("check", broken)
    assert done.code == 1 and done.err.count("error[TC0210]") == 3 and "Traceback" not in done.err, done.err
    assert all(f"{broken}:{n}" in done.err for n in at)
    assert "did you mean `RoleSpec`?" in done.err and "did you mean `slot_bytes`?" in done.err

    lines = (dumped[1] / "ir" / "10-tiles.txt").read_text().split("\n")
    at = [edit('          "embed",', '          "embde",'), edit('Access("queries"', 'Access("qeries"')]
    broken.write_text("\n".join(lines))
    done = cli("opt", broken, "-p", "rings")
    assert done.code == 1 and "[hand-offs-point-back]" in done.err and "[boxes-inside]" in done.err, done.err
    assert done.err.count(f"--> {broken}:") >= 2


def test_text_of_another_version_and_cycles(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    old, cyclic = tmp_path / "old.txt", tmp_path / "cyclic.txt"
    text = (dumped[1] / "ir" / "10-tiles.txt").read_text()
    old.write_text(text.replace("tilecc.tiles 2", "tilecc.tiles 1", 1))
    check(cli("opt", old, "-p", "rings"), "TC0211", f"{old}:1", "tilecc.tiles 1")
    check(cli("compile", MODEL, "--target", "sm_90a", "--from", old, "-o", tmp_path / "o"), "TC0211")
    # qkv of layer 0 waits for the attention that waits for it
    cyclic.write_text(text.replace('          "embed",', '          "layers.0.attention",', 1))
    done = cli("opt", cyclic, "-p", "rings")
    assert done.code == 1 and "does not stand before it" in done.err and f"{cyclic}:" in done.err, done.err


def test_values_that_do_not_belong_together(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    """Text that keeps every rule and still cannot be lowered is the text's fault: no internal error."""
    broken = tmp_path / "broken.txt"
    text = next(dumped[0].glob("*-fuse.after.txt")).read_text()
    broken.write_text(text.replace('"producer": "o_proj"', '"producer": "experts_down"', 1))
    check(cli("opt", broken, "-p", "tile"), "TC0213", "KeyError", f"{broken}:1")


def test_an_unknown_kind_of_op(dumped: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    broken = tmp_path / "broken.txt"
    text = next(dumped[0].glob("*-fuse.after.txt")).read_text()
    broken.write_text(re.sub(r'("embed",\s+)"embed"', r'\1"embde"', text, count=1))
    check(cli("opt", broken, "-p", "tile"), "TC0212", "did you mean `embed`?", f"{broken}:")
