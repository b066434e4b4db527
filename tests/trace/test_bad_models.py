"""Bad model files: each gives one error with its code, the user's file and line, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilecc.diag import CATALOGUE, Diagnostic, TileccError
from tilecc.ir.graph_ops import GRAPH_OPS
from tilecc.trace.capture import trace_model
from tilecc.trace.load import make_module

SMALL = Path(__file__).resolve().parent / "small_model.py"


def refuse(path: Path) -> list[Diagnostic]:
    """The diagnostics of a model file that must not trace."""
    with pytest.raises(TileccError) as caught:
        trace_model(path)
    found = caught.value.diagnostics
    assert all(d.code in CATALOGUE for d in found)
    return found


def edited(folder: Path, old: str, new: str) -> tuple[Path, int]:
    """A copy of the small model with one text replaced; the line that says `BAD`, or else the first new."""
    text = SMALL.read_text()
    assert text.count(old) == 1, old
    path = folder / "small_model.py"
    path.write_text(text.replace(old, new))
    lines = path.read_text().splitlines()
    marked = [number for number, line in enumerate(lines, 1) if "BAD" in line]
    return path, marked[0] if marked else text[: text.index(old)].count("\n") + 1


# A statement of the dense layer; `y` is f32 [T, 32].
DENSE = "        h = F.silu(self.gate_proj(y)) * self.up_proj(y)\n"
CONTRACT_FORWARD = "self, tokens: Tensor, positions: Tensor, seqs: Tensor, *caches: Tensor"
RETURN = "        return logits, torch.argmax(logits, -1)\n"

BAD_LINES: list[tuple[str, str, str, str, str]] = [
    # name, code, part of the message or notes, old text, new text
    (
        "unknown op",
        "TC0105",
        "torch op `aten.gelu.default` cannot",
        DENSE,
        "        h = F.gelu(self.gate_proj(y))\n",
    ),
    ("in place", "TC0105", "`aten.add_.Tensor` cannot", DENSE, f"        y += y  # BAD\n{DENSE}"),
    ("add of a constant", "TC0105", "add of a constant", DENSE, f"        y = y + 1.0  # BAD\n{DENSE}"),
    (
        "bf16 compute",
        "TC0105",
        "conversion from torch.float32",
        DENSE,
        f"        y = y.bfloat16().float()  # BAD\n{DENSE}",
    ),
    (
        "view",
        "TC0105",
        "a view of another shape",
        DENSE,
        f"        y = y.view(-1, 2, 16).view(-1, 32)  # BAD\n{DENSE}",
    ),
    (
        "tensor constant",
        "TC0105",
        "tensor constant",
        DENSE,
        f"        y = y * torch.tensor(2.0)  # BAD\n{DENSE}",
    ),
    (
        "new tensor",
        "TC0105",
        "`aten.ones.default` cannot",
        DENSE,
        f"        y = y * torch.ones(32)  # BAD\n{DENSE}",
    ),
    (
        "rows as a number",
        "TC0105",
        "depends on the number of rows",
        DENSE,
        f"        y = y * y.shape[0]  # BAD\n{DENSE}",
    ),
    ("item", "TC0105", "`aten.select.int` cannot", DENSE, f"        y = y * y[0, 0].item()  # BAD\n{DENSE}"),
    (
        "argmax of columns",
        "TC0105",
        "only `torch.argmax(x, dim=-1)`",
        RETURN,
        "        return logits, torch.argmax(logits, 0)\n",
    ),
    (
        "branch on a value",
        "TC0106",
        "depends on the values of a tensor",
        DENSE,
        f"        if y.sum() > 0:  # BAD\n            y = y * 2.0\n{DENSE}",
    ),
    (
        "loop on a value",
        "TC0106",
        "depends on the values of a tensor",
        DENSE,
        f"        for _ in range(int(y[0, 0])):  # BAD\n            y = y * 2.0\n{DENSE}",
    ),
    (
        "branch on rows",
        "TC0106",
        "every number of rows from 1 to 64",
        DENSE,
        f"        if y.shape[0] > 3:  # BAD\n            y = y * 2.0\n{DENSE}",
    ),
    (
        "fixed rows",
        "TC0106",
        "every number of rows from 1 to 64",
        DENSE,
        f"        y = y.view(7, 32)  # BAD\n{DENSE}",
    ),
    (
        "exception in forward",
        "TC0109",
        "AttributeError: 'Dense' object has no attribute 'nothing'",
        DENSE,
        f"        y = self.nothing(y)  # BAD\n{DENSE}",
    ),
    ("wrong shapes", "TC0109", "RuntimeError", DENSE, f"        y = y + y[:, :7]  # BAD\n{DENSE}"),
    (
        "exception in caches",
        "TC0109",
        "ZeroDivisionError",
        "        sizes = [DIM",
        "        1 / 0  # BAD\n        sizes = [DIM",
    ),
    (
        "exception in spec",
        "TC0109",
        "ZeroDivisionError",
        "        spec = {}\n",
        "        spec = {}\n        1 / 0  # BAD\n",
    ),
    (
        "bf16 parameter",
        "TC0203",
        "torch.bfloat16",
        "        self.gate_proj = nn.Linear(HIDDEN, WIDTH, bias=False)\n",
        "        self.gate_proj = nn.Linear(HIDDEN, WIDTH, bias=False, dtype=torch.bfloat16)\n",
    ),
    (
        "not rounded",
        "TC0212",
        "q of attend `layers.0.attn.attend` is not rounded",
        "        o = t.attend(q, k, v,",
        "        o = t.attend(q * 2.0, k, v,",
    ),
    (
        "computed weight",
        "TC0212",
        "must be a f32 value, `embed.weight` is a f32 param",
        "F.embedding(tokens, self.embed.weight)",
        "F.embedding(tokens, self.embed.weight * 2.0)",
    ),
    (
        "odd rotary",
        "TC0212",
        "rotary_dim must be even",
        "        k = t.round_e4m3(t.rope(k, positions, 10000.0, 4))\n",
        "        k = t.round_e4m3(t.rope(k, positions, 10000.0, 5))\n",
    ),
    (
        "no spec entry",
        "TC0104",
        "has no entry for the parameter `layers.0.norm`",
        "            spec[name] = P",
        '            if "norm" in name:\n                continue\n            spec[name] = P',
    ),
    (
        "spec of another shape",
        "TC0104",
        "the parameter `embed.weight` has shape [100, 32], its `checkpoint_spec` says",
        '"bf16", shape,',
        '"bf16", (7, *shape),',
    ),
    (
        "no ParamSpec",
        "TC0104",
        "has a str instead of a ParamSpec",
        "            spec[name] = P",
        "            spec[name] = name or P",
    ),
    (
        "other forward",
        "TC0104",
        "cannot be called as `forward(tokens, positions, seqs, *caches)`",
        CONTRACT_FORWARD,
        "self, tokens: Tensor, caches: list[Tensor]",
    ),
    ("no caches", "TC0104", "has no method `caches`", "    def caches(", "    def no_caches("),
    (
        "other caches",
        "TC0104",
        "`caches(device)` cannot be called",
        "    def caches(self, device: Any, max_seqs: int, max_context: int) -> list[Tensor]:",
        "    def caches(self, device):",
    ),
    (
        "caches of another form",
        "TC0104",
        "entry 0 of 4 is a torch.float32 [64, 3, 2, 12]",
        "torch.zeros(max_seqs, max_context,",
        "torch.zeros(max_context, max_seqs,",
    ),
    ("one result", "TC0104", "it returns: f32 of rank 2", RETURN, "        return logits\n"),
    (
        "swapped results",
        "TC0104",
        "it returns: i64 of rank 1, f32 of rank 2",
        RETURN,
        "        return torch.argmax(logits, -1), logits\n",
    ),
    (
        "no module",
        "TC0104",
        "returned dict, not a torch.nn.Module",
        "    return Small()\n",
        "    return {}\n",
    ),
    (
        "no config argument",
        "TC0104",
        "cannot be called as `decode_step(config)`",
        "def decode_step(config: dict[str, Any] | None = None)",
        "def decode_step()",
    ),
    ("no decode step", "TC0102", "has no function `decode_step`", "def decode_step", "def step"),
    (
        "exception in decode_step",
        "TC0103",
        "`decode_step` raised KeyError: 'sizes'",
        "    return Small()\n",
        "    return Small(config or {}['sizes'])  # BAD\n",
    ),
    ("exception at import", "TC0103", "raised NameError", "HIDDEN, HEADS", "nonsense  # BAD\nHIDDEN, HEADS"),
    (
        "missing module",
        "TC0103",
        "No module named 'no_such_module'",
        "import torch\n",
        "import no_such_module  # BAD\nimport torch\n",
    ),
    ("syntax", "TC0103", "SyntaxError", "class Dense(nn.Module):", "class Dense(nn.Module:  # BAD"),
    (
        "exit at import",
        "TC0103",
        "raised SystemExit: 3",
        "HIDDEN, HEADS",
        "raise SystemExit(3)  # BAD\nHIDDEN, HEADS",
    ),
]


@pytest.mark.parametrize(
    ("code", "part", "old", "new"), [b[1:] for b in BAD_LINES], ids=[b[0] for b in BAD_LINES]
)
def test_bad_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: str, part: str, old: str, new: str
) -> None:
    path, line = edited(tmp_path, old, new)
    found = refuse(path)
    assert {d.code for d in found} == {code}
    assert len(found) == 1 or code == "TC0212"
    first = found[0]
    assert part in "\n".join([first.message, *first.notes])
    assert first.span is not None and first.span.file == str(path)
    if code in ("TC0105", "TC0106", "TC0109", "TC0103", "TC0212"):
        assert first.span.line == line
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""  # torch's own chatter is kept away


def test_an_op_that_cannot_be_lowered_lists_those_that_can(tmp_path: Path) -> None:
    path, _ = edited(tmp_path, DENSE, "        h = F.gelu(self.gate_proj(y))\n")
    (found,) = refuse(path)
    notes = "\n".join(found.notes)
    assert "in module `layers.0.mlp`" in notes
    assert all(f"{op}: {info.torch}" in notes for op, info in GRAPH_OPS.items())


def test_a_bias_is_refused_where_the_layer_is_called(tmp_path: Path) -> None:
    path, _ = edited(tmp_path, "nn.Linear(WIDTH, HIDDEN, bias=False)", "nn.Linear(WIDTH, HIDDEN)")
    (found,) = refuse(path)
    assert found.code == "TC0105" and "linear has a bias" in found.notes[0]
    assert found.span is not None
    assert "return self.down_proj(" in path.read_text().splitlines()[found.span.line - 1]


def test_in_place_ops_come_with_the_fix(tmp_path: Path) -> None:
    path, _ = edited(tmp_path, DENSE, f"        y += y\n{DENSE}")
    (found,) = refuse(path)
    assert "x = x + y" in "\n".join(found.help)


def test_an_unrounded_operand_points_at_where_it_is_made(tmp_path: Path) -> None:
    path, line = edited(
        tmp_path,
        "        q = t.round(t.rope(q, positions, 10000.0, 4))\n",
        "        q = t.rope(q, positions, 1e4, 4)\n",
    )
    (found,) = refuse(path)
    (made,) = found.secondary
    assert (made.file, made.line, made.label) == (str(path), line, "made here")


def test_one_violation_per_line_not_per_layer(tmp_path: Path) -> None:
    path, _ = edited(
        tmp_path, "        q = t.round(t.rope(q, positions, 10000.0, 4))\n", "        q = q + q\n"
    )
    found = refuse(path)
    assert len(found) == 1
    assert found[0].notes == ("and 1 more of this rule at this line",)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mimo_tiny.py").write_text("")
    (found,) = refuse(tmp_path / "mimo_tinny.py")
    assert found.code == "TC0101"
    assert "does not exist" in found.message and "mimo_tiny.py" in found.notes[0]
    (found,) = refuse(tmp_path)
    assert found.code == "TC0101" and "is not a Python file" in found.message


def test_diagnostics_of_the_model_file_pass_unchanged(tmp_path: Path) -> None:
    path, _ = edited(
        tmp_path,
        "    return Small()\n",
        '    from tilecc.diag import error\n\n    raise error("TC0107", "`head_dim` must be positive")\n',
    )
    (found,) = refuse(path)
    assert (found.code, found.message) == ("TC0107", "`head_dim` must be positive")


def test_a_failed_import_leaves_no_module_and_no_path(tmp_path: Path) -> None:
    import sys

    before, paths = set(sys.modules), list(sys.path)
    path, _ = edited(tmp_path, "HIDDEN, HEADS", "nonsense\nHIDDEN, HEADS")
    refuse(path)
    assert sys.path == paths
    assert not [name for name in set(sys.modules) - before if name.startswith("_tilecc_model")]


def test_frames_of_installed_packages_are_not_the_models(tmp_path: Path) -> None:
    """A virtual environment beside the model file: the user's own line is reported, not the package's."""
    package = tmp_path / "venv" / "site-packages"
    package.mkdir(parents=True)
    (package / "helper_package.py").write_text("def fail():\n    raise ValueError('inside')\n")
    path, line = edited(
        tmp_path,
        "    return Small()\n",
        f"    import sys\n\n    sys.path.append({str(package)!r})\n    import helper_package\n\n"
        "    helper_package.fail()  # BAD\n",
    )
    (found,) = refuse(path)
    assert found.span is not None and (found.span.file, found.span.line) == (str(path), line)


def test_module_is_made_without_memory() -> None:
    module = make_module(SMALL, None)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert not module.training and not any(p.requires_grad for p in module.parameters())
