"""Tracing of sound models: the Graph of a small model and of MiMo tiny, names, places, determinism, size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilecc.ir.graph import Graph
from tilecc.ir.graph_ops import DRAFT_OPS, GRAPH_OPS
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.verify import verify
from tilecc.trace.capture import trace_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).resolve().parent / "small_model.py"
TINY = ROOT / "models" / "mimo_tiny.py"

Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def small() -> Graph:
    return trace_model(SMALL)


@pytest.fixture(scope="module")
def tiny() -> Graph:
    return trace_model(TINY)


def test_small_model_is_traced_completely(small: Graph) -> None:
    assert {node.op for node in small.nodes} == set(GRAPH_OPS) - set(DRAFT_OPS)
    assert small.name == "small_model"
    assert small.outputs == ("head", "head_argmax")
    assert [v.name for v in small.inputs] == ["tokens", "positions", "seqs"]
    assert [(s.name, s.heads, s.dim) for s in small.states] == [
        ("layers.0.k_cache", 2, 12),
        ("layers.0.v_cache", 2, 8),
        ("layers.1.k_cache", 2, 12),
        ("layers.1.v_cache", 2, 8),
    ]


def test_names_come_from_modules_and_roles(small: Graph) -> None:
    names = [
        value.name for node in small.nodes for value in node.results if value.name.startswith("layers.1")
    ]
    assert names == [
        "layers.1.norm_out",
        "layers.1.norm_out_bf16",
        "layers.1.attn.qkv_proj",
        "layers.1.attn.q",
        "layers.1.attn.k",
        "layers.1.attn.v",
        "layers.1.attn.q_rope",
        "layers.1.attn.q_rope_bf16",
        "layers.1.attn.k_rope",
        "layers.1.attn.k_rope_e4m3",
        "layers.1.attn.v_scaled",
        "layers.1.attn.v_scaled_e4m3",
        "layers.1.attn.attend",
        "layers.1.attn.attend_bf16",
        "layers.1.attn.o_proj",
        "layers.1.attn.o_proj_add",
        "layers.1.attn.o_proj_add_bf16",
        "layers.1.norm_out_2",
        "layers.1.norm_out_2_bf16",
        "layers.1.mlp.router",
        "layers.1.mlp.ids",
        "layers.1.mlp.weights",
        "layers.1.mlp.experts",
        "layers.1.mlp.experts_add",  # named after the branch although it is the left operand
        "layers.1.mlp.experts_add_bf16",
    ]


def test_attributes_params_and_optional_operands(small: Graph) -> None:
    nodes = {node.name: node for node in small.nodes}
    assert nodes["layers.1.attn.attend"].inputs[3:] == (
        "layers.1.k_cache",
        "layers.1.v_cache",
        "positions",
        "seqs",
        "layers.1.attn.sink",
    )
    assert nodes["layers.1.attn.attend"].attrs == {"window_keys": 8, "softmax_scale": 0.3, "layer": 1}
    assert nodes["layers.0.attn.attend"].inputs[-1] == "seqs"
    assert nodes["layers.0.attn.v_scaled"].attrs == {"factor": 0.5}
    assert nodes["layers.1.mlp.route"].attrs == {"k": 2, "norm_topk": True, "scaling": 1.0}
    params = {param.name: param for param in small.params}
    assert "unused" not in params  # a parameter that the step does not read needs no bytes
    assert params["layers.1.mlp.bias"].shape == (6,)  # a buffer
    gate = params["layers.1.mlp.gate"]
    assert (gate.shape, gate.experts, gate.source) == ((6, 16, 32), 6, "layers.1.mlp.experts.{e}.gate")


def test_locations_are_the_lines_of_the_model_file(small: Graph) -> None:
    lines = SMALL.read_text().splitlines()
    seen = {node.name: node.loc for node in small.nodes}
    assert {loc.file for loc in seen.values()} == {"small_model.py"}
    assert "t.attend(" in lines[seen["layers.0.attn.attend"].line - 1]
    # a helper method is found although it is not named forward
    assert "ops.tilecc.rms_norm" in lines[seen["layers.0.norm_out"].line - 1]
    assert seen["layers.0.attn.attend"].module == "layers.0.attn"
    assert seen["layers.1.mlp.router"].module == "layers.1.mlp.router"


def test_text_of_the_graph_round_trips(small: Graph, tiny: Graph) -> None:
    for graph in (small, tiny):
        assert Graph.from_text(graph.to_text()) == graph
        assert Graph.from_text(graph.to_text()).to_text() == graph.to_text()


def test_mimo_tiny(tiny: Graph, golden: Golden) -> None:
    assert verify(tiny, GRAPH_RULES) == []
    golden("mimo_tiny/00-graph.txt", tiny.to_text())


def test_no_ops_leave_no_node(tmp_path: Path, small: Graph) -> None:
    changed = edited(
        tmp_path,
        "x = layer(x, positions,",
        "x = F.dropout(x.float().contiguous().detach().view(x.shape[0], 32), 0.1, self.training)\n"
        "            assert x.shape[1] == 32 and x.shape[0] <= 64\n"
        "            _unused = torch.fft.rfft(x)\n"
        "            x = layer(x, positions,",
    )
    graph = trace_model(changed)
    assert [(n.name, n.op, n.inputs) for n in graph.nodes] == [(n.name, n.op, n.inputs) for n in small.nodes]


def test_gradient_guards_of_the_model_are_transparent(tmp_path: Path, small: Graph) -> None:
    old = "    def forward(\n        self, tokens:"
    path = edited(tmp_path, old, "    @torch.no_grad()\n" + old)
    assert [n.name for n in trace_model(path).nodes] == [n.name for n in small.nodes]


def test_prints_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace_model(edited(tmp_path, "        h = F.silu(", '        print("hello")\n        h = F.silu('))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_output_does_not_depend_on_the_run_or_the_place(tmp_path: Path, small: Graph) -> None:
    """Another process and hash seed, the file elsewhere and named by a relative path: identical bytes."""
    (tmp_path / "small_model.py").write_text(SMALL.read_text())
    program = (
        "from pathlib import Path; from tilecc.trace.capture import trace_model;"
        "print(trace_model(Path('small_model.py')).to_text(), end='')"
    )
    env = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == small.to_text()
    assert str(tmp_path) not in done.stdout


def pro_config() -> dict[str, Any]:
    """The sizes of MiMo-V2.5-Pro (design page "mimo", 1.1) on the keys of the tiny configuration."""
    config = json.loads((ROOT / "models" / "mimo_tiny" / "config.json").read_text())
    layers, global_layers = 70, (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)
    sizes = {"num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 192, "v_head_dim": 128}
    config |= sizes | {f"swa_{key}": value for key, value in sizes.items()}
    config |= {
        "vocab_size": 152576,
        "hidden_size": 6144,
        "num_hidden_layers": layers,
        "hybrid_layer_pattern": [int(i not in global_layers) for i in range(layers)],
        "moe_layer_freq": [0] + [1] * (layers - 1),
        "sliding_window": 128,
        "sliding_window_size": 128,
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 384,
        "num_experts_per_tok": 8,
    }
    ignored = [f"model.layers.{i}.self_attn.o_proj" for i in range(layers)]
    config["quantization_config"] |= {"ignored_layers": ignored}
    return config


def test_a_model_of_1_t_parameters_traces_in_seconds_and_under_2_gb(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(pro_config()))
    program = (
        "import json, resource, sys, time; from pathlib import Path; start = time.time();"
        "from tilecc.trace.capture import trace_model;"
        "config = json.loads(Path(sys.argv[1]).read_text());"
        "graph = trace_model(Path(sys.argv[2]), config);"
        "rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024;"
        "count = sum(__import__('math').prod(p.shape) for p in graph.params);"
        "print(json.dumps([time.time() - start, rss, count, len(graph.nodes)]))"
    )
    model = ROOT / "models" / "mimo_v2.py"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "config.json"), str(model)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seconds, rss, count, nodes = json.loads(done.stdout)
    assert 1.01e12 < count < 1.03e12  # without the MTP layers
    assert nodes > 70 * 20
    assert seconds < 30
    assert rss < 2e9


def edited(folder: Path, old: str, new: str) -> Path:
    """A copy of the small model with one text replaced."""
    text = SMALL.read_text()
    assert text.count(old) == 1, old
    path = folder / "small_model.py"
    path.write_text(text.replace(old, new))
    return path
