"""The official ``config.json`` of the MiMo-V2 family, and the checkpoint tensors that it implies.

Free of torch, so that a runtime without it can validate a checkpoint. Facts: design page "mimo", sections 1
and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilecc.diag import Diagnostic, TileccError
from tilecc.weights.spec import FP8_BLOCK, MXFP4_GROUP, Format, ParamSpec

_KNOWN_QUANT_KEYS = frozenset(
    "quant_method fmt activation_scheme weight_block_size ignored_layers store_dtype mxfp4_block_size".split()
)


@dataclass(frozen=True)
class LayerConfig:
    """Sizes of one decoder layer. ``window`` is the number of visible keys including self, 0 for global."""

    index: int
    window: int
    sink: bool
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    rotary_dim: int
    theta: float
    chunks: int
    moe: bool

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused matrix."""
        return (self.heads + self.kv_heads) * self.head_dim + self.kv_heads * self.v_head_dim


@dataclass(frozen=True)
class MiMoConfig:
    """A checked configuration. ``raw`` is the parsed config.json it came from."""

    raw: dict[str, Any]
    vocab: int
    hidden: int
    eps: float
    value_scale: float
    intermediate: int
    moe_intermediate: int
    experts: int
    top_k: int
    norm_topk: bool
    routed_scaling: float
    max_positions: int
    router_format: Format
    linear_format: Format
    expert_format: Format
    ignored: frozenset[str]
    layers: tuple[LayerConfig, ...]


class Reader:
    """Reads keys of the raw configuration and collects what is wrong with them, to report all at once."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.found: list[Diagnostic] = []
        self.bad: set[str] = set()
        """Keys already reported: what is derived from them is not reported again."""

    def fail(self, message: str, help: str = "", code: str = "TC0107") -> None:
        self.found.append(Diagnostic(code, message, None, (), (help,) if help else ()))

    def sound(self, *keys: str) -> bool:
        """True when none of ``keys`` has been reported."""
        return self.bad.isdisjoint(keys)

    def value(self, key: str, default: Any = None) -> Any:
        got = self.raw.get(key)
        if got is None and default is None:
            self.bad.add(key)
            self.fail(f"the configuration lacks `{key}`", "take the key from the official config.json")
        return default if got is None else got

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        got = self.value(key, default)
        if isinstance(got, bool) or not isinstance(got, int) or got < low:
            if got is not None:
                self.bad.add(key)
                self.fail(f"`{key}` is `{got!r}`, but must be an integer of at least {low}")
            return low
        return got

    def number(self, key: str, default: float | None = None, positive: bool = True) -> float:
        got = self.value(key, default)
        if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
            if got is not None:
                self.bad.add(key)
                self.fail(f"`{key}` is `{got!r}`, but must be a finite number")
            return 1.0
        if positive and got <= 0:
            self.bad.add(key)
            self.fail(f"`{key}` is `{got!r}`, but must be positive")
            return 1.0
        return float(got)

    def flags(self, key: str, count: int) -> list[int]:
        """A list of 0 or 1 per layer. A longer list is allowed: a reduction may keep the official one."""
        got = self.value(key)
        if got is None:
            return [0] * count
        if not isinstance(got, list) or any(v not in (0, 1) for v in got):
            self.fail(f"`{key}` is `{got!r}`, but must be a list of 0 and 1, one per layer")
            return [0] * count
        if len(got) < count:
            self.fail(
                f"`{key}` has {len(got)} entries for {count} layers",
                f"give one entry per layer, or set `num_hidden_layers` to {len(got)}",
            )
            return [0] * count
        return [int(v) for v in got[:count]]

    def only(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuse a key whose value has a meaning that the definition does not implement."""
        got = self.raw.get(key)
        if got not in allowed:
            shown = " or ".join(f"`{v!r}`" for v in allowed)
            self.fail(f"`{key}` is `{got!r}`, but only {shown} is supported", why)


def parse_config(raw: Mapping[str, Any]) -> MiMoConfig:
    """Check an official configuration.

    Raises :class:`TileccError` with one diagnostic per bad key: TC0107 (missing or illegal value), TC0202
    (dimension does not fit the quantisation block), TC0306 (unknown quantization_config).
    """
    r = Reader(raw)
    _refuse_other_models(r)
    count = r.integer("num_hidden_layers")
    pattern = r.flags("hybrid_layer_pattern", count)
    moe = r.flags("moe_layer_freq", count)
    hidden = r.integer("hidden_size")
    layers = _layers(r, count, pattern, moe)
    any_moe, all_moe = any(moe), all(moe)
    experts = r.integer("n_routed_experts") if any_moe else 0
    top_k = r.integer("num_experts_per_tok") if any_moe else 0
    if top_k > experts and r.sound("num_experts_per_tok", "n_routed_experts"):
        r.fail(f"`num_experts_per_tok` is {top_k}, but there are only {experts} experts (`n_routed_experts`)")
    moe_intermediate = r.integer("moe_intermediate_size") if any_moe else 0
    norm_topk = raw.get("norm_topk_prob", True)
    if not isinstance(norm_topk, bool):
        r.fail(f"`norm_topk_prob` is `{norm_topk!r}`, but must be true or false")
    linear_format, expert_format, ignored = _quantization(r)
    if any_moe and expert_format == "mxfp4":
        for key, size in (("hidden_size", hidden), ("moe_intermediate_size", moe_intermediate)):
            if size % MXFP4_GROUP and r.sound(key):
                r.fail(
                    f"`{key}` is {size}, but MXFP4 experts need a multiple of {MXFP4_GROUP} columns",
                    f"use {-(-size // MXFP4_GROUP) * MXFP4_GROUP}",
                    code="TC0202",
                )
    r.only("moe_router_dtype", (None, "float32", "bfloat16"), "store the router as float32 or bfloat16")
    config = MiMoConfig(
        raw=dict(raw),
        vocab=r.integer("vocab_size"),
        hidden=hidden,
        eps=r.number("layernorm_epsilon"),
        value_scale=r.number("attention_value_scale", 1.0, positive=False),
        intermediate=0 if all_moe else r.integer("intermediate_size"),
        moe_intermediate=moe_intermediate,
        experts=experts,
        top_k=top_k,
        norm_topk=bool(norm_topk),
        routed_scaling=r.number("routed_scaling_factor", 1.0),
        max_positions=r.integer("max_position_embeddings", 1 << 20),
        router_format="bf16" if raw.get("moe_router_dtype") == "bfloat16" else "f32",
        linear_format=linear_format,
        expert_format=expert_format,
        ignored=ignored,
        layers=layers,
    )
    if r.found:
        raise TileccError(r.found)
    return config


def _refuse_other_models(r: Reader) -> None:
    r.only("model_type", (None, "mimo_v2"), "the split q/k/v layout of mimo_v2_flash is another definition")
    r.only("attention_projection_layout", (None, "fused_qkv"), "the official mimo_v2 layout is fused_qkv")
    r.only("hidden_act", (None, "silu"), "the family uses silu")
    r.only("n_shared_experts", (None, 0), "the family has no shared experts")
    r.only("n_group", (None, 1), "group-limited routing is not part of the family")
    r.only("topk_group", (None, 1), "group-limited routing is not part of the family")
    r.only("scoring_func", (None, "sigmoid"), "the family scores experts with sigmoid")
    r.only("topk_method", (None, "noaux_tc"), "the family selects with a correction bias")
    r.only("attention_bias", (None, False), "the family's projections have no bias")
    r.only("tie_word_embeddings", (None, False), "the family has a separate lm_head")
    scaling = r.raw.get("rope_scaling")
    if scaling is not None:
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
        if kind != "default":
            r.fail(
                f"`rope_scaling` has type `{kind!r}`, but only `'default'` is supported",
                "remove rope_scaling",
            )


def _layers(r: Reader, count: int, pattern: list[int], moe: list[int]) -> tuple[LayerConfig, ...]:
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
    full = [r.integer(key) for key in sizes]
    local = [r.integer(f"swa_{key}", value) for key, value in zip(sizes, full, strict=True)]
    factor = r.number("partial_rotary_factor", 1.0)
    full_theta = r.number("rope_theta")
    window, local_theta = 0, full_theta
    if any(pattern):
        window = r.integer("sliding_window", r.raw.get("sliding_window_size"))
        local_theta = r.number("swa_rope_theta")
    sinks = (bool(r.raw.get("add_full_attention_sink_bias")), bool(r.raw.get("add_swa_attention_sink_bias")))
    # The fused matrix is cut for `num_key_value_heads` ranks in every layer, also where a sliding layer has
    # more.
    chunks = full[1]
    for prefix, (heads, kv_heads, head_dim, _), used in (("", full, 0), ("swa_", local, 1)):
        heads_keys = (f"{prefix}num_attention_heads", f"{prefix}num_key_value_heads", *sizes[:2])
        if used not in pattern or not r.sound(*heads_keys, f"{prefix}head_dim", "head_dim"):
            continue
        if heads % kv_heads:
            r.fail(
                f"`{prefix}num_attention_heads` is {heads}, but must be a multiple of "
                f"`{prefix}num_key_value_heads`, {kv_heads}"
            )
        if kv_heads % chunks or heads % chunks:
            r.fail(
                f"`{prefix}num_key_value_heads` is {kv_heads} and `{prefix}num_attention_heads` is {heads}, "
                f"but the fused QKV matrix is stored in {chunks} chunks (`num_key_value_heads`)",
                f"use multiples of {chunks}",
            )
        rotary = int(head_dim * factor)
        if (rotary < 2 or rotary % 2 or rotary > head_dim) and r.sound("partial_rotary_factor"):
            r.fail(
                f"`{prefix}head_dim` {head_dim} times `partial_rotary_factor` {factor} gives {rotary} rotary "
                f"dimensions, but the rotation needs an even number from 2 to {head_dim}",
                "choose the factor so that int(head_dim * factor) is even",
            )
    rows = []
    for index in range(count):
        heads, kv_heads, head_dim, v_head_dim = local if pattern[index] else full
        rows.append(
            LayerConfig(
                index=index,
                window=window if pattern[index] else 0,
                sink=sinks[pattern[index]],
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                v_head_dim=v_head_dim,
                rotary_dim=int(head_dim * factor),
                theta=local_theta if pattern[index] else full_theta,
                chunks=chunks,
                moe=bool(moe[index]),
            )
        )
    return tuple(rows)


def _quantization(r: Reader) -> tuple[Format, Format, frozenset[str]]:
    """(format of dense linears, format of experts, names of modules that stay bf16)."""
    quant = r.raw.get("quantization_config")
    if quant is None:
        return "bf16", "bf16", frozenset()
    bad: list[str] = []
    if not isinstance(quant, dict):
        bad.append(f"it is `{quant!r}`, not an object")
        quant = {}
    else:
        wanted: dict[str, tuple[Any, ...]] = {
            "quant_method": ("fp8",),
            "fmt": (None, "e4m3"),
            "activation_scheme": (None, "dynamic"),
            "weight_block_size": ([FP8_BLOCK, FP8_BLOCK],),
            "store_dtype": (None, "fp8", "mxfp4"),
            "mxfp4_block_size": (None, MXFP4_GROUP),
        }
        bad += [
            f"`{key}` is `{quant.get(key)!r}`, supported: "
            + ", ".join(repr(v) for v in allowed if v is not None)
            for key, allowed in wanted.items()
            if quant.get(key) not in allowed
        ]
        bad += [f"`{key}` is not known" for key in quant if key not in _KNOWN_QUANT_KEYS]
        if quant.get("quant_method") not in wanted["quant_method"]:
            bad = bad[:1]  # another method has keys of its own: the rest would say nothing
    for reason in bad:
        r.fail(
            f"unknown `quantization_config`: {reason}",
            "use an unquantised, FP8 (128 x 128 blocks) or FP8 + MXFP4 (`store_dtype`) checkpoint",
            code="TC0306",
        )
    ignored = quant.get("ignored_layers") or []
    return "fp8_block", "mxfp4" if quant.get("store_dtype") == "mxfp4" else "fp8_block", frozenset(ignored)


def tensor_specs(config: MiMoConfig) -> dict[str, ParamSpec]:
    """Every parameter of the model and its official source, in the order of the checkpoint listing."""

    def linear(name: str, shape: tuple[int, int], chunks: int = 1) -> ParamSpec:
        module = name.removesuffix(".weight")
        bf16 = module in config.ignored or config.linear_format == "bf16"
        return ParamSpec(name, "bf16" if bf16 else config.linear_format, shape, chunks=1 if bf16 else chunks)

    hidden = config.hidden
    specs = {
        "model.embed_tokens.weight": ParamSpec("model.embed_tokens.weight", "bf16", (config.vocab, hidden))
    }
    for layer in config.layers:
        base = f"model.layers.{layer.index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            specs[f"{base}.{norm}.weight"] = ParamSpec(f"{base}.{norm}.weight", "bf16", (hidden,))
        name = f"{base}.self_attn.qkv_proj.weight"
        specs[name] = linear(name, (layer.qkv_rows, hidden), layer.chunks)
        name = f"{base}.self_attn.o_proj.weight"
        # Never quantised in any published checkpoint, whether or not `ignored_layers` lists it (mimo.md 2.3).
        specs[name] = ParamSpec(name, "bf16", (hidden, layer.heads * layer.v_head_dim))
        if layer.sink:
            name = f"{base}.self_attn.attention_sink_bias"
            specs[name] = ParamSpec(name, "bf16", (layer.heads,))
        if not layer.moe:
            for part in ("gate_proj", "up_proj", "down_proj"):
                wide = (config.intermediate, hidden)
                name = f"{base}.mlp.{part}.weight"
                specs[name] = linear(name, wide if part != "down_proj" else wide[::-1])
            continue
        name = f"{base}.mlp.gate.weight"
        specs[name] = ParamSpec(name, config.router_format, (config.experts, hidden))
        name = f"{base}.mlp.gate.e_score_correction_bias"
        specs[name] = ParamSpec(name, "f32", (config.experts,))
        for part in ("gate_proj", "up_proj", "down_proj"):
            wide = (config.moe_intermediate, hidden)
            source = f"{base}.mlp.experts.{{e}}.{part}.weight"
            specs[f"{base}.mlp.experts.{part}"] = ParamSpec(
                source,
                config.expert_format,
                wide if part != "down_proj" else wide[::-1],
                experts=config.experts,
            )
    specs["model.norm.weight"] = ParamSpec("model.norm.weight", "bf16", (hidden,))
    specs["lm_head.weight"] = ParamSpec("lm_head.weight", "bf16", (config.vocab, hidden))
    return specs
