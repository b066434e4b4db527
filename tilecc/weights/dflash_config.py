"""The official ``config.json`` of a DFlash draft, and the checkpoint tensors that it implies.

Facts: design pages "mimo", section 4, and "dflash", sections 1.4 and 6.1. A key with a meaning that the
definition does not implement is an error: a wrong draft is never wrong output, only slow, so nobody would
notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilecc.diag import TileccError
from tilecc.diag.model import nearest
from tilecc.weights.mimo_config import Reader
from tilecc.weights.spec import ParamSpec

_KNOWN_KEYS = frozenset(
    "target_layer_ids mask_token_id num_anchors block_size loss_decay_gamma use_swa swa_window_size"
    " backbone_rotary_base attention_value_scale attention_sink_bias causal".split()
)
"""Of `dflash_config`. num_anchors and loss_decay_gamma are of the training; backbone_rotary_base is read by
nobody: the draft rotates context and block by rope_theta."""


@dataclass(frozen=True)
class DFlashConfig:
    """A checked configuration. ``windows`` are the visible positions of each layer including the query's own,
    0 for all; ``taps`` the target layers whose outputs are fused; ``vocab`` is the target's."""

    raw: dict[str, Any]
    vocab: int
    hidden: int
    eps: float
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    rotary_dim: int
    theta: float
    windows: tuple[int, ...]
    sink: bool
    value_scale: float
    taps: tuple[int, ...]
    mask_token: int
    block: int

    @property
    def features(self) -> int:
        """Columns of the concatenated taps."""
        return len(self.taps) * self.hidden


def parse_dflash_config(raw: Mapping[str, Any]) -> DFlashConfig:
    """Check a draft's configuration; raises TileccError TC0107 with one diagnostic per bad key.

    ``target_vocab_size`` (not official: the draft's own `vocab_size` differs and is unused) is the number of
    rows of the target's embedding and head; without it they have `vocab_size` rows.
    """
    r = Reader(raw)
    r.only("architectures", (None, ["DFlashDraftModel"]), "DFlash2, DSpark and others are other definitions")
    r.only("model_type", (None, "qwen3"), "the draft of the family has this type")
    r.only("hidden_act", (None, "silu"), "the family uses silu")
    r.only("attention_bias", (None, False), "the draft's projections have no bias")
    r.only("tie_word_embeddings", (None, False), "embedding and head are the target's")
    inner = raw.get("dflash_config")
    if not isinstance(inner, dict):
        r.fail("the configuration lacks `dflash_config`", "take it from the draft's official config.json")
        inner = {}
    for key in inner:
        if key not in _KNOWN_KEYS:
            r.fail(f"`dflash_config` has an unknown key `{key}`", nearest(key, _KNOWN_KEYS))
    d = Reader(inner)
    layers, hidden = r.integer("num_hidden_layers"), r.integer("hidden_size")
    heads, kv_heads = r.integer("num_attention_heads"), r.integer("num_key_value_heads")
    if heads % kv_heads:
        r.fail(
            f"`num_attention_heads` is {heads}, but must be a multiple of `num_key_value_heads`, {kv_heads}"
        )
    head_dim = r.integer("head_dim")
    rotary = int(head_dim * r.number("partial_rotary_factor", 1.0))
    if (rotary < 2 or rotary % 2 or rotary > head_dim) and r.sound("head_dim", "partial_rotary_factor"):
        r.fail(
            f"`head_dim` {head_dim} times `partial_rotary_factor` gives {rotary} rotary dimensions, but the"
            f" rotation needs an even number from 2 to {head_dim}",
            "choose the factor so that int(head_dim * factor) is even",
        )
    taps = d.value("target_layer_ids")
    known_layers = r.integer("num_target_layers")
    wrong = not isinstance(taps, list) or not taps or any(type(t) is not int for t in taps)
    if taps is not None and (wrong or any(not 0 <= t < known_layers for t in taps)):
        d.fail(f"`target_layer_ids` is `{taps!r}`, but must list layers from 0 to {known_layers - 1}")
    vocab = r.integer("target_vocab_size", r.integer("vocab_size"))
    mask = d.integer("mask_token_id", low=0)
    if mask >= vocab:
        d.fail(f"`mask_token_id` is {mask}, but the vocabulary has {vocab} entries")
    block = d.integer("block_size", low=2)
    if raw.get("block_size", block) != block:
        r.fail(f"`block_size` is `{raw['block_size']!r}`, `dflash_config` says {block}")
    config = DFlashConfig(
        raw=dict(raw),
        vocab=vocab,
        hidden=hidden,
        eps=r.number("rms_norm_eps"),
        intermediate=r.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=r.integer("v_head_dim", head_dim),
        rotary_dim=rotary,
        theta=r.number("rope_theta"),
        windows=_windows(r, d, layers),
        sink=bool(inner.get("attention_sink_bias", False)),
        value_scale=d.number("attention_value_scale", 1.0, positive=False),
        taps=tuple(taps) if not wrong else (0,),
        mask_token=mask,
        block=block,
    )
    if r.found or d.found:
        raise TileccError([*r.found, *d.found])
    return config


def _windows(r: Reader, d: Reader, layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 for all positions; blocks are bidirectional in all of them."""
    types = r.raw.get("layer_types")
    swa = bool(d.raw.get("use_swa", False))
    if types is None:
        types = ["sliding_attention" if swa else "full_attention"] * layers
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        r.fail(f"`layer_types` is `{types!r}`, but must list one of {' or '.join(known)} per layer")
        return (0,) * layers
    sliding = "sliding_attention" in types
    # dflash.md 1.4: the top-level key, then that of dflash_config; sliding layers without either are causal
    # inside the block, except where use_swa alone makes them.
    causal = r.raw.get("is_causal", d.raw.get("causal"))
    if causal is None:
        causal = sliding and not (swa and r.raw.get("layer_types") is None)
    if causal:
        r.fail(
            "sliding layers are causal inside the block, only bidirectional blocks are supported",
            "set `is_causal` to false if the draft was trained so",
        )
    if not sliding:
        return (0,) * layers
    window = d.integer("swa_window_size", r.raw.get("sliding_window"))
    return tuple(window if t == "sliding_attention" else 0 for t in types)


def dflash_specs(config: DFlashConfig) -> dict[str, ParamSpec]:
    """Every parameter of the draft and its official source (mimo.md 4.2); embedding and head are the
    target's."""
    hidden, heads, kv_heads = config.hidden, config.heads, config.kv_heads
    table = (config.vocab, hidden)
    specs = {"embed_tokens.weight": ParamSpec("model.embed_tokens.weight", "bf16", table, shared=True)}
    specs["mask_embedding"] = ParamSpec("mask_embedding.pt:embedding", "bf16", (hidden,))
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, config.features),
        "hidden_norm.weight": (hidden,),
    }
    for i in range(len(config.windows)):
        base = f"layers.{i}"
        shapes |= {
            f"{base}.input_layernorm.weight": (hidden,),
            f"{base}.post_attention_layernorm.weight": (hidden,),
            f"{base}.self_attn.q_proj.weight": (heads * config.head_dim, hidden),
            f"{base}.self_attn.k_proj.weight": (kv_heads * config.head_dim, hidden),
            f"{base}.self_attn.v_proj.weight": (kv_heads * config.v_head_dim, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, heads * config.v_head_dim),
            f"{base}.self_attn.q_norm.weight": (config.head_dim,),
            f"{base}.self_attn.k_norm.weight": (config.head_dim,),
            f"{base}.mlp.gate_proj.weight": (config.intermediate, hidden),
            f"{base}.mlp.up_proj.weight": (config.intermediate, hidden),
            f"{base}.mlp.down_proj.weight": (hidden, config.intermediate),
        }
        if config.sink:
            shapes[f"{base}.self_attn.attention_sink_bias"] = (heads,)
    shapes["norm.weight"] = (hidden,)
    specs |= {name: ParamSpec(name, "bf16", shape) for name, shape in shapes.items()}
    specs["lm_head.weight"] = ParamSpec("lm_head.weight", "bf16", table, shared=True)
    return specs
