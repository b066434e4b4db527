// mimo_tiny for sm_90a: one decode step per iteration of one persistent kernel.
// Made by tilecc from mimo_tiny.py; docs/architecture.md explains the parts.
//
//   grid     any number of CTAs that are resident together, at most 256: result bits do not depend on it
//   CTA      1 loader, 1 store, 2 activations, 4 consumer warps
//   rings    weights 8 x 16384 B, activations 8 x 8192 B, exchange 2 x 4608 B//   step     up to 8 rows

#define TILECC_MAX_ROWS 8
#include "epilogues.cuh"
#include "op_attention.cuh"
#include "op_attention_split.cuh"
#include "op_gemv.cuh"
#include "op_route.cuh"
#include "op_vector.cuh"

// ---- arithmetic of the tile bodies ---------------------------------------------------------------------------------
// TIRx body norm_rstd: 1 / sqrt(sum_sq * inv_n + eps); one Newton step after the hardware estimate.
TK_FN float norm_rstd(float sum_sq, float inv_n, float eps) {
  float a = (sum_sq * inv_n) + eps;
  float y = tk_rsqrt(a);
  float refined = y * (1.5f - (((0.5f * a) * y) * y));
  return (0.0f < refined) ? refined : y;
}

// TIRx body norm_apply: x * rstd * w, in this order; one rounding to bf16 follows in the caller.
TK_FN float norm_apply(float x, float rstd, float w) { return (x * rstd) * w; }

// TIRx body rope_pair: Rotate (a, b) = (u_j, u_{j + R/2}) by the angle with cosine c and sine s.
TK_FN void rope_pair(float a, float b, float c, float s, float* out2) {
  out2[0] = (a * c) - (b * s);
  out2[1] = (b * c) + (a * s);
}

// TIRx body swiglu: silu(gate) * up = gate / (1 + e^-gate) * up.
TK_FN float swiglu(float gate, float up) {
  float g = (gate < -3.4028235e+38f) ? -3.4028235e+38f : gate;
  return (g * tk_rcp(1.0f + tk_exp2(g * -1.442695f))) * up;
}

// TIRx body sigmoid: 1 / (1 + e^-z).
TK_FN float sigmoid(float z) { return tk_rcp(1.0f + tk_exp2(z * -1.442695f)); }

// TIRx body argmax_pair: The better of two (value, id): larger value, then lower id, NaN last.
TK_FN void argmax_pair(float va, int ia, float vb, int ib, float* v1, int* i1) {
  float a = (-__builtin_huge_valf() <= va) ? va : -__builtin_huge_valf();
  float b = (-__builtin_huge_valf() <= vb) ? vb : -__builtin_huge_valf();
  int a_id = (-__builtin_huge_valf() <= va) ? ia : (ia + 1073741824);
  int b_id = (-__builtin_huge_valf() <= vb) ? ib : (ib + 1073741824);
  if ((b < a) || ((a == b) && (a_id < b_id))) {
    v1[0] = va;
    i1[0] = ia;
  } else {
    v1[0] = vb;
    i1[0] = ib;
  }
}

// TIRx body softmax_online: Running maximum and the factor e^(m_old - m_new) for what was summed before.
TK_FN void softmax_online(float m_old, float s_max, float* m_new1, float* rescale1) {
  float top = (m_old < s_max) ? s_max : m_old;
  m_new1[0] = top;
  rescale1[0] = (m_old == -__builtin_huge_valf()) ? 0.0f : tk_exp2((m_old - top) * 1.442695f);
}

// TIRx body softmax_p: e^(s - m) of a score under the running maximum m; 0 for a masked score (-inf), NaN for NaN.
TK_FN float softmax_p(float s, float m) { return (s == -__builtin_huge_valf()) ? 0.0f : tk_exp2((s - m) * 1.442695f); }

// TIRx body softmax_merge_1: Weights of partial outputs from their maxima m and sums d; the sink is one more column.
TK_FN void softmax_merge_1(float* m, float* d, float sink, float* scale) {
  float top = sink;
  TK_UNROLL
  for (int i = 0; i < 1; ++i) {
    if ((0.0f < d[0]) && (top < m[0])) {
      top = m[0];
    }
  }
  float total = 0.0f;
  TK_UNROLL
  for (int i_1 = 0; i_1 < 1; ++i_1) {
    scale[0] = (d[0] == 0.0f) ? 0.0f : ((m[0] == -__builtin_huge_valf()) ? 0.0f : tk_exp2((m[0] - top) * 1.442695f));
    total = total + (scale[0] * d[0]);
  }
  total = total + ((sink == -__builtin_huge_valf()) ? 0.0f : tk_exp2((sink - top) * 1.442695f));
  float inverse = (total == 0.0f) ? 0.0f : tk_rcp(total);
  TK_UNROLL
  for (int i_2 = 0; i_2 < 1; ++i_2) {
    scale[0] = scale[0] * inverse;
  }
}

// TIRx body router_topk_e16_k4: Top-k of sigmoid(logit) + bias, ties to the lower id, NaN last.
TK_FN void router_topk_e16_k4(float* logits, float* bias, int lane, float scaling, int norm, int* ids, float* weights) {
  float sig;
  float score;
  int key;
  TK_UNROLL
  for (int i = 0; i < 1; ++i) {
    sig = tk_rcp(1.0f + tk_exp2(logits[0] * -1.442695f));
    float choice = sig + bias[0];
    score = (-__builtin_huge_valf() <= choice) ? choice : -__builtin_huge_valf();
    key = (-__builtin_huge_valf() <= choice) ? lane : (lane + 65536);
  }
  if (16 <= lane) {
    score = -__builtin_huge_valf();
    key = 131072;
  }
  float total = 0.0f;
  TK_UNROLL
  for (int k = 0; k < 4; ++k) {
    float best_score = score;
    int best_key = key;
    float best_sig = sig;
    TK_UNROLL
    for (int step = 0; step < 5; ++step) {
      float other_score = tk_shfl_xor_f32(best_score, 16 >> step);
      int other_key = tk_shfl_xor_i32(best_key, 16 >> step);
      float other_sig = tk_shfl_xor_f32(best_sig, 16 >> step);
      if ((best_score < other_score) || ((other_score == best_score) && (other_key < best_key))) {
        best_score = other_score;
        best_key = other_key;
        best_sig = other_sig;
      }
    }
    TK_UNROLL
    for (int i_1 = 0; i_1 < 1; ++i_1) {
      if (key == best_key) {
        score = -__builtin_huge_valf();
        key = 196608;
      }
    }
    ids[k] = best_key & 65535;
    weights[k] = best_sig;
    total = total + best_sig;
  }
  float inverse = (norm != 0) ? tk_rcp(total + 1e-20f) : 1.0f;
  TK_UNROLL
  for (int k_1 = 0; k_1 < 4; ++k_1) {
    weights[k_1] = (weights[k_1] * inverse) * scaling;
  }
}

namespace {
using namespace tilecc;

// Workspace offsets, bytes.
namespace ws {
constexpr u64 kState = 0;                   // 256 B
constexpr u64 kX = 256;                     // 4096 B
constexpr u64 kY = 4352;                    // 4096 B
constexpr u64 kSumSq = 8448;                // 128 B
constexpr u64 kQueries = 8704;              // 49152 B
constexpr u64 kAttentionPartials = 57856;   // 1114112 B
constexpr u64 kAttention = 1171968;         // 4096 B
constexpr u64 kHidden = 1176064;            // 8192 B
constexpr u64 kRoutes = 1184256;            // 1024 B
constexpr u64 kExpertHidden = 1185280;      // 32768 B
constexpr u64 kArgmax = 1218048;            // 16384 B
constexpr u64 kCounters = 1234432;          // 1664 B
constexpr u64 kOProjWords = 1236224;        // 49152 B
constexpr u64 kDownWords = 1285376;         // 98304 B
constexpr u64 kRouterWords = 1383680;       // 3072 B
constexpr u64 kExpertsDownWords = 1386752;  // 98304 B
}  // namespace ws

// The machine of one CTA: warps per role, rings of shared memory.
struct Config {
  static constexpr u32 kConsumerWarps = 4;
  static constexpr u32 kActWarps = 2;
  static constexpr u32 kWStages = 8;
  static constexpr u32 kWStageBytes = 16384;
  static constexpr u32 kASlots = 8;
  static constexpr u32 kASlotBytes = 8192;
  static constexpr u32 kXSlots = 2;
  static constexpr u32 kXSlotBytes = 4608;
  static constexpr u64 kCounters = ws::kCounters, kState = ws::kState;
};
using Cx = Ctx<Config>;
static_assert(Cx::S::kTotal == 209152, "the runtime asks for this much shared memory");

// ---- ops -----------------------------------------------------------------------------------------------------------

// embed: model.embed_tokens
//   from mimo_v2.py:198
//   waits for commit: counter over state
struct EmbedOp {
  static constexpr u64 kX = ws::kX;
  static constexpr u64 kY = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kUnits = 4;
  static constexpr u32 kRotation = 0;
  static constexpr u32 kCounter = 0;
};
using Embed = tilecc::Embed<Config, EmbedOp>;

// layers.0.qkv: model.layers.0.input_layernorm, model.layers.0.input_layernorm_bf16,
//   model.layers.0.self_attn.qkv_proj, model.layers.0.split_qkv, model.layers.0.q_rope,
//   model.layers.0.q_rope_bf16, model.layers.0.k_rope, model.layers.0.k_rope_bf16, model.layers.0.v_scaled,
//   model.layers.0.v_scaled_bf16 (and 2 more layers)
//   from mimo_v2.py:41 (model.layers.0.self_attn.qkv_proj)
//   waits for embed: counter over sum_sq, y
struct QkvGlobalOp {
  static constexpr Format kFormat = Format::kFp8;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 44;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u32 kHeads = 8;
  static constexpr u32 kKvHeads = 4;
  static constexpr u32 kHeadDim = 48;
  static constexpr u32 kValueDim = 32;
  static constexpr u32 kRotary = 16;
  static constexpr u32 kRopeTiles = 1;
  static constexpr u32 kQkTiles = 3;
  static constexpr u32 kValueTiles = 2;
  static constexpr float kValueScale = 0.612f;
  static constexpr u64 kQueries = ws::kQueries;
  static constexpr u32 kHeadSteps = 3;
  static constexpr u32 kRotation = 4;
  static constexpr u32 kCounter = 1;
  struct KvShape {
    static constexpr KvFormat kFormat = KvFormat::kBf16;
    static constexpr u32 kKvHeads = 4;
    static constexpr u32 kHeadSteps = 3;
    static constexpr u32 kValueDim = 32, kBlocks = 64;
  };
  using Kv = KvCache<KvShape>;
  using Epilogue = QkvEpilogue<QkvGlobalOp>;
};
using QkvGlobal = tilecc::Gemv<Config, QkvGlobalOp>;

// layers.0.attention: model.layers.0.attend, model.layers.0.attend_bf16 (and 2 more layers)
//   from mimo_v2.py:214 (model.layers.0)
//   waits for layers.0.qkv: counter over kv.0, queries
struct AttentionGlobalOp {
  static constexpr u32 kHeads = 8;
  static constexpr u32 kKvHeads = 4;
  static constexpr u32 kHeadSteps = 3;
  static constexpr u32 kValueDim = 32;
  static constexpr float kScale = 0.14433756729740643f;
  static constexpr u64 kQueries = ws::kQueries;
  static constexpr u32 kSplits = 16;
  static constexpr u32 kChunkBlocks = 4;
  static constexpr u32 kTaskRows = 4;
  static constexpr u64 kPartials = ws::kAttentionPartials;
  static constexpr u32 kRotation = 48;
  static constexpr u32 kCounter = 2;
  struct KvShape {
    static constexpr KvFormat kFormat = KvFormat::kBf16;
    static constexpr u32 kKvHeads = 4;
    static constexpr u32 kHeadSteps = 3;
    static constexpr u32 kValueDim = 32, kBlocks = 64;
  };
  using Kv = KvCache<KvShape>;
};
using AttentionGlobal = tilecc::SplitAttention<Config, AttentionGlobalOp>;

// layers.0.attention_merge: model.layers.0.attend, model.layers.0.attend_bf16 (and 2 more layers)
//   from mimo_v2.py:214 (model.layers.0)
//   waits for layers.0.attention: counter over attention_partials
struct AttentionMergeOp {
  static constexpr u32 kHeads = 8;
  static constexpr u32 kKvHeads = 4;
  static constexpr u32 kValueDim = 32;
  static constexpr u32 kSplits = 16;
  static constexpr u32 kChunkBlocks = 4;
  static constexpr bool kSink = false;
  static constexpr u64 kPartials = ws::kAttentionPartials;
  static constexpr u64 kOut = ws::kAttention;
  static constexpr u32 kRotation = 176;
  static constexpr u32 kCounter = 3;
  static TK_FN void merge(float* m, float* d, float sink, float* scale) { softmax_merge_1(m, d, sink, scale); }
};
using AttentionMerge = tilecc::AttentionMerge<Config, AttentionMergeOp>;

// layers.0.o_proj: model.layers.0.self_attn.o_proj (and 7 more layers)
//   from mimo_v2.py:41 (model.layers.0.self_attn.o_proj)
//   waits for layers.0.attention_merge: counter over attention
struct OProjOp {
  static constexpr Format kFormat = Format::kBf16;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 16;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 2;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 1;
  static constexpr u32 kActChunk = 1;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 1;
  static constexpr Source kSource = Source::kFragment;
  static constexpr u64 kSourceOffset = ws::kAttention;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 0.0f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kPush = ws::kOProjWords;
  static constexpr u32 kPushBytes = 16384;
  static constexpr u32 kPushes = 8;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kRotation = 304;
  static constexpr u32 kCounter = kNoCounter;
  using Epilogue = PartialWordsEpilogue<OProjOp>;
};
using OProj = tilecc::Gemv<Config, OProjOp>;

// layers.0.attn_reduce: model.layers.0.self_attn.o_proj_add, model.layers.0.self_attn.o_proj_add_bf16 (and 7 more
//   layers)
//   from mimo_v2.py:135 (model.layers.0)
//   waits for layers.0.o_proj: flag over o_proj_words
struct AttnReduceOp {
  static constexpr u64 kX = ws::kX;
  static constexpr u64 kY = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kUnits = 4;
  static constexpr u64 kPartials = ws::kOProjWords;
  static constexpr u32 kSplits = 2;
  static constexpr bool kWords = true;
  static constexpr u32 kPollBytes = 16384;
  static constexpr u32 kPolls = 8;
  static constexpr u32 kSteps = 16;
  static constexpr u32 kRotation = 336;
  static constexpr u32 kCounter = 4;
};
using AttnReduce = tilecc::Reduce<Config, AttnReduceOp>;

// layers.0.gate_up: model.layers.0.post_attention_layernorm, model.layers.0.post_attention_layernorm_bf16,
//   model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj, model.layers.0.mlp.gate_proj_silu,
//   model.layers.0.mlp.gate_proj_silu_mul, model.layers.0.mlp.gate_proj_silu_mul_bf16
//   from mimo_v2.py:41 (model.layers.0.mlp.gate_proj)
//   waits for layers.0.attn_reduce: counter over sum_sq, y
struct GateUpOp {
  static constexpr Format kFormat = Format::kFp8;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 64;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kOffset = ws::kHidden;
  static constexpr u32 kColumns = 512;
  static constexpr bool kRouted = false;
  static constexpr u32 kRotation = 340;
  static constexpr u32 kCounter = 5;
  using Epilogue = SwigluEpilogue<GateUpOp>;
};
using GateUp = tilecc::Gemv<Config, GateUpOp>;

// layers.0.down: model.layers.0.mlp.down_proj
//   from mimo_v2.py:41 (model.layers.0.mlp.down_proj)
//   waits for layers.0.gate_up: counter over hidden
struct DownOp {
  static constexpr Format kFormat = Format::kFp8;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 16;
  static constexpr u32 kBlocks = 4;
  static constexpr u32 kSplits = 4;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 1;
  static constexpr u32 kActChunk = 1;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 1;
  static constexpr Source kSource = Source::kFragment;
  static constexpr u64 kSourceOffset = ws::kHidden;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 0.0f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kPush = ws::kDownWords;
  static constexpr u32 kPushBytes = 32768;
  static constexpr u32 kPushes = 1;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kRotation = 404;
  static constexpr u32 kCounter = kNoCounter;
  using Epilogue = PartialWordsEpilogue<DownOp>;
};
using Down = tilecc::Gemv<Config, DownOp>;

// layers.0.mlp_reduce: model.layers.0.mlp.down_proj_add, model.layers.0.mlp.down_proj_add_bf16
//   from mimo_v2.py:140 (model.layers.0)
//   waits for layers.0.down: flag over down_words
struct MlpReduceOp {
  static constexpr u64 kX = ws::kX;
  static constexpr u64 kY = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kUnits = 4;
  static constexpr u64 kPartials = ws::kDownWords;
  static constexpr u32 kSplits = 4;
  static constexpr bool kWords = true;
  static constexpr u32 kPollBytes = 32768;
  static constexpr u32 kPolls = 1;
  static constexpr u32 kSteps = 16;
  static constexpr u32 kRotation = 468;
  static constexpr u32 kCounter = 6;
};
using MlpReduce = tilecc::Reduce<Config, MlpReduceOp>;

// layers.1.qkv: model.layers.1.input_layernorm, model.layers.1.input_layernorm_bf16,
//   model.layers.1.self_attn.qkv_proj, model.layers.1.split_qkv, model.layers.1.q_rope,
//   model.layers.1.q_rope_bf16, model.layers.1.k_rope, model.layers.1.k_rope_bf16, model.layers.1.v_scaled,
//   model.layers.1.v_scaled_bf16 (and 4 more layers)
//   from mimo_v2.py:41 (model.layers.1.self_attn.qkv_proj)
//   waits for layers.0.mlp_reduce: counter over sum_sq, y
struct QkvWindow32Op {
  static constexpr Format kFormat = Format::kFp8;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 44;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u32 kHeads = 8;
  static constexpr u32 kKvHeads = 4;
  static constexpr u32 kHeadDim = 48;
  static constexpr u32 kValueDim = 32;
  static constexpr u32 kRotary = 16;
  static constexpr u32 kRopeTiles = 1;
  static constexpr u32 kQkTiles = 3;
  static constexpr u32 kValueTiles = 2;
  static constexpr float kValueScale = 0.612f;
  static constexpr u64 kQueries = ws::kQueries;
  static constexpr u32 kHeadSteps = 3;
  static constexpr u32 kRotation = 4;
  static constexpr u32 kCounter = 7;
  struct KvShape {
    static constexpr KvFormat kFormat = KvFormat::kBf16;
    static constexpr u32 kKvHeads = 4;
    static constexpr u32 kHeadSteps = 3;
    static constexpr u32 kValueDim = 32, kBlocks = 4;
  };
  using Kv = KvCache<KvShape>;
  using Epilogue = QkvEpilogue<QkvWindow32Op>;
};
using QkvWindow32 = tilecc::Gemv<Config, QkvWindow32Op>;

// layers.1.attention: model.layers.1.attend, model.layers.1.attend_bf16 (and 4 more layers)
//   from mimo_v2.py:214 (model.layers.1)
//   waits for layers.1.qkv: counter over kv.1, queries
struct AttentionWindow32Op {
  static constexpr u32 kHeads = 8;
  static constexpr u32 kKvHeads = 4;
  static constexpr u32 kHeadSteps = 3;
  static constexpr u32 kValueDim = 32;
  static constexpr float kScale = 0.14433756729740643f;
  static constexpr u64 kQueries = ws::kQueries;
  static constexpr u32 kWindow = 32;
  static constexpr u32 kTurns = 1;
  static constexpr bool kSink = true;
  static constexpr u64 kOut = ws::kAttention;
  static constexpr u32 kRotation = 48;
  static constexpr u32 kCounter = 8;
  struct KvShape {
    static constexpr KvFormat kFormat = KvFormat::kBf16;
    static constexpr u32 kKvHeads = 4;
    static constexpr u32 kHeadSteps = 3;
    static constexpr u32 kValueDim = 32, kBlocks = 4;
  };
  using Kv = KvCache<KvShape>;
  static TK_FN void merge(float* m, float* d, float sink, float* scale) { softmax_merge_1(m, d, sink, scale); }
};
using AttentionWindow32 = tilecc::WindowAttention<Config, AttentionWindow32Op>;

// layers.1.router: model.layers.1.post_attention_layernorm, model.layers.1.post_attention_layernorm_bf16,
//   model.layers.1.mlp.gate (and 6 more layers)
//   from mimo_v2.py:146 (model.layers.1)
//   waits for layers.1.attn_reduce: counter over sum_sq, y
struct RouterOp {
  static constexpr Format kFormat = Format::kF32;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 1;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kPush = ws::kRouterWords;
  static constexpr u32 kPushBytes = 1024;
  static constexpr u32 kPushes = 7;
  static constexpr u32 kRowsOut = 16;
  static constexpr u32 kPitch = 32;
  static constexpr u32 kRotation = 472;
  static constexpr u32 kCounter = kNoCounter;
  using Epilogue = LogitsWordsEpilogue<RouterOp>;
};
using Router = tilecc::Gemv<Config, RouterOp>;

// layers.1.route: model.layers.1.route (and 6 more layers)
//   from mimo_v2.py:147 (model.layers.1)
//   waits for layers.1.attn_reduce: counter over router_words
//   waits for layers.1.router: flag over router_words
struct RouteOp {
  static constexpr u32 kExperts = 16;
  static constexpr u32 kTopK = 4;
  static constexpr u32 kPitch = 32;
  static constexpr u32 kSplits = 4;
  static constexpr u64 kLogits = ws::kRouterWords;
  static constexpr u64 kRoutes = ws::kRoutes;
  static constexpr bool kWords = true;
  static constexpr u32 kPollBytes = 1024;
  static constexpr u32 kPolls = 7;
  static constexpr float kScaling = 1.0f;
  static constexpr bool kNormTopK = true;
  static constexpr u32 kRotation = 473;
  static TK_FN void topk(float* logits, float* bias, int lane, int* ids, float* weights) {
    router_topk_e16_k4(logits, bias, lane, kScaling, kNormTopK ? 1 : 0, ids, weights);
  }
};
using Route = tilecc::Route<Config, RouteOp>;

// layers.1.experts_up: model.layers.1.post_attention_layernorm, model.layers.1.post_attention_layernorm_bf16,
//   model.layers.1.experts (and 6 more layers)
//   from mimo_v2.py:152 (model.layers.1)
//   waits for layers.1.route: mbarrier over routing
struct ExpertsUpOp {
  static constexpr Format kFormat = Format::kMxfp4;
  static constexpr Over kOver = Over::kExpertsUp;
  static constexpr u32 kTiles = 16;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 2;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kOffset = ws::kExpertHidden;
  static constexpr u32 kColumns = 128;
  static constexpr bool kRouted = true;
  static constexpr u32 kRotation = 473;
  static constexpr u32 kCounter = 9;
  using Epilogue = SwigluEpilogue<ExpertsUpOp>;
};
using ExpertsUp = tilecc::Gemv<Config, ExpertsUpOp>;

// layers.1.experts_down: model.layers.1.experts (and 6 more layers)
//   from mimo_v2.py:152 (model.layers.1)
//   waits for layers.1.experts_up: counter over expert_hidden
struct ExpertsDownOp {
  static constexpr Format kFormat = Format::kMxfp4;
  static constexpr Over kOver = Over::kExpertsDown;
  static constexpr u32 kTiles = 16;
  static constexpr u32 kBlocks = 1;
  static constexpr u32 kSplits = 4;
  static constexpr u32 kGroup = 1;
  static constexpr u32 kChunk = 1;
  static constexpr u32 kActChunk = 1;
  static constexpr u32 kSlots = 4;
  static constexpr u32 kWarpsK = 1;
  static constexpr Source kSource = Source::kFragment;
  static constexpr u64 kSourceOffset = ws::kExpertHidden;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 0.0f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kPush = ws::kExpertsDownWords;
  static constexpr u32 kPushBytes = 32768;
  static constexpr u32 kPushes = 7;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kRotation = 601;
  static constexpr u32 kCounter = kNoCounter;
  using Epilogue = PartialWordsEpilogue<ExpertsDownOp>;
};
using ExpertsDown = tilecc::Gemv<Config, ExpertsDownOp>;

// layers.1.moe_reduce: model.layers.1.experts_add, model.layers.1.experts_add_bf16 (and 6 more layers)
//   from mimo_v2.py:138 (model.layers.1)
//   waits for layers.1.experts_down: flag over experts_down_words
struct MoeReduceOp {
  static constexpr u64 kX = ws::kX;
  static constexpr u64 kY = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kColumns = 256;
  static constexpr u32 kUnits = 4;
  static constexpr u64 kPartials = ws::kExpertsDownWords;
  static constexpr u32 kSplits = 4;
  static constexpr bool kWords = true;
  static constexpr u32 kPollBytes = 32768;
  static constexpr u32 kPolls = 7;
  static constexpr u32 kSteps = 16;
  static constexpr u32 kRotation = 665;
  static constexpr u32 kCounter = 10;
};
using MoeReduce = tilecc::Reduce<Config, MoeReduceOp>;

// head: model.norm, model.norm_bf16, lm_head
//   from mimo_v2.py:41 (lm_head)
//   waits for layers.7.moe_reduce: counter over sum_sq, y
struct HeadOp {
  static constexpr Format kFormat = Format::kBf16;
  static constexpr Over kOver = Over::kDense;
  static constexpr u32 kTiles = 256;
  static constexpr u32 kBlocks = 2;
  static constexpr u32 kSplits = 1;
  static constexpr u32 kGroup = 2;
  static constexpr u32 kChunk = 2;
  static constexpr u32 kActChunk = 2;
  static constexpr u32 kSlots = 1;
  static constexpr u32 kWarpsK = 2;
  static constexpr Source kSource = Source::kNorm;
  static constexpr u64 kSourceOffset = ws::kY;
  static constexpr u64 kSumSq = ws::kSumSq;
  static constexpr u32 kHidden = 256;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kPrefetches = false;
  static constexpr u64 kOffset = ws::kArgmax;
  static constexpr u32 kVocab = 4096;
  static constexpr u32 kRotation = 669;
  static constexpr u32 kCounter = 11;
  using Epilogue = ArgmaxEpilogue<HeadOp>;
};
using Head = tilecc::Gemv<Config, HeadOp>;

// commit: lm_head_argmax
//   from mimo_v2.py:223
//   waits for head: counter over argmax
struct CommitOp {
  static constexpr u64 kPartials = ws::kArgmax;
  static constexpr u32 kRotation = 797;
  static constexpr u32 kCounter = 12;
};
using Commit = tilecc::Commit<Config, CommitOp>;

// ---- the program ---------------------------------------------------------------------------------------------------
constexpr u32 kLayers = 8;
constexpr u32 kPrologueRows = 1, kBodyRows = 15;
constexpr u32 kEpilogueRow = kPrologueRows + kLayers * kBodyRows;

// One op of the program in one role. A layer that does not have the op has an absent row.
template <Role R, class Op>
TK_FN void run(Cx& c, u32 row, u32 id) {
  const OpRow r = tk::ld_uniform(reinterpret_cast<const OpRow*>(c.p.tables) + row);
  if (r.present == 0) return;
  tk::opaque(c.lane);
  c.table_row = row;
  c.watch.op = id;
  c.watch.layer = r.layer;
  if constexpr (R == Role::kLoader) Op::loader(c, r);
  if constexpr (R == Role::kStore) Op::store(c, r);
  if constexpr (R == Role::kActivations) Op::activations(c, r);
  if constexpr (R == Role::kConsumer) Op::consumer(c, r);
}

template <Role R>
TK_FN void run_step(Cx& c) {
  run<R, Embed>(c, 0, 0);
#pragma unroll 1
  for (u32 layer = 0; layer < kLayers; ++layer) {
    const u32 row = kPrologueRows + layer * kBodyRows;
    run<R, QkvGlobal>(c, row + 0, 1);
    run<R, AttentionGlobal>(c, row + 1, 2);
    run<R, AttentionMerge>(c, row + 2, 3);
    run<R, QkvWindow32>(c, row + 3, 9);
    run<R, AttentionWindow32>(c, row + 4, 10);
    run<R, OProj>(c, row + 5, 4);
    run<R, AttnReduce>(c, row + 6, 5);
    run<R, GateUp>(c, row + 7, 6);
    run<R, Down>(c, row + 8, 7);
    run<R, MlpReduce>(c, row + 9, 8);
    run<R, Router>(c, row + 10, 11);
    run<R, Route>(c, row + 11, 12);
    run<R, ExpertsUp>(c, row + 12, 13);
    run<R, ExpertsDown>(c, row + 13, 14);
    run<R, MoeReduce>(c, row + 14, 15);
  }
  run<R, Head>(c, kEpilogueRow + 0, 16);
  run<R, Commit>(c, kEpilogueRow + 1, 17);
}

// A stop token ends the launch on every CTA at the same step: the commit op of the step before decided it.
template <Role R>
TK_FN bool stopped(Cx& c) {
  if (c.p.n_stop == 0 || c.step == 0) return false;
  tk::wait_ge(c.counter(12), c.ncta * (c.base + c.step), c.watch);
  if constexpr (R != Role::kLoader) tk::syncwarp();
  // Atomic: a warp without work may read this while the commit of its own step already writes for the next one.
  return tk::ld_relaxed(&c.state()->stop) == c.base + c.step;
}

template <Role R>
TK_FN void run_role(const tilecc_params& p, u32 epoch, u32 turn, u32 first_warp) {
  Cx c;
  c.p = p;
  c.sb = tk::smem_base();
  c.cta = tk::cta(), c.ncta = tk::ncta(), c.lane = tk::lane(), c.warp = tk::warp() - first_warp;
  c.base = epoch;
  c.turn = turn;
  c.w = c.a = c.x = Ring{0, 0};
  c.route_phase = 0;
  c.watch = tk::Watch{p.status, static_cast<u32>(R), 0, 0, 0};
#pragma unroll 1
  for (c.step = 0; c.step < p.n_steps; ++c.step) {
    if (stopped<R>(c)) break;
    c.n_rows = tk::ld_uniform(c.step_desc()).n_rows;
    run_step<R>(c);
    c.turn = c.turn + 1 == kTurns ? 0 : c.turn + 1;
  }
  if constexpr (R == Role::kStore) {
    if (c.cta == 0 && c.lane == 0) {
      uint8_t* state = p.workspace + ws::kState;
      tk::stg32(state + offsetof(State, epoch), epoch + c.step);
      tk::stg32(state + offsetof(State, turn), c.turn);
      tk::stg32(state + offsetof(State, primed), 1);
    }
  }
}

// The share of each warp in filling a region of words that are flags with poison.
TK_FN void fill_words(const tilecc_params& p, u64 offset, u32 bytes) {
  u64* words = reinterpret_cast<u64*>(p.workspace + offset);
  TILECC_ROLLED
  for (u32 i = tk::cta() * 256 + tk::warp() * 32 + tk::lane(); i < bytes / 8; i += tk::ncta() * 256)
    tk::poison_word(words + i, tk::kFlagPoison64);
}

// The first launch on a cleared workspace fills all of them, before anyone pushes.
TK_FN void prime(const tilecc_params& p) {
  State* state = reinterpret_cast<State*>(p.workspace + ws::kState);
  if (tk::ldg32(&state->primed) != 0) return;
  fill_words(p, ws::kOProjWords, 49152);
  fill_words(p, ws::kDownWords, 98304);
  fill_words(p, ws::kRouterWords, 3072);
  fill_words(p, ws::kExpertsDownWords, 98304);
  tk::syncwarp();
  tk::red_release(&state->filled, 1);
  if (tk::warp() == 0)
    tk::wait_ge(&state->filled, tk::ncta() * 8, tk::Watch{p.status, static_cast<u32>(Role::kLoader), 0, 0, 0});
}

TK_FN void init_barriers() {
  using S = Cx::S;
  const smem_t sb = tk::smem_base();
  tk::smem_region("barriers", sb + S::kBarriers, S::kBarrierBytes);
  for (u32 i = 0; i < Config::kWStages; ++i)
    tk::smem_region("weight stage", sb + S::kWeights + i * Config::kWStageBytes, Config::kWStageBytes);
  for (u32 i = 0; i < Config::kASlots; ++i)
    tk::smem_region("activation slot", sb + S::kActs + i * Config::kASlotBytes, Config::kASlotBytes);
  for (u32 i = 0; i < Config::kXSlots; ++i)
    tk::smem_region("exchange slot", sb + S::kExchange + i * Config::kXSlotBytes, Config::kXSlotBytes);
  tk::smem_region("routing", sb + S::kRoute, S::kRouteBytes);
  tk::name_role(static_cast<u32>(Role::kLoader), "loader");
  tk::name_role(static_cast<u32>(Role::kStore), "store");
  tk::name_role(static_cast<u32>(Role::kActivations), "activations");
  tk::name_role(static_cast<u32>(Role::kConsumer), "consumer");
  tk::name_op(0, "Embed");
  tk::name_op(1, "QkvGlobal");
  tk::name_op(2, "AttentionGlobal");
  tk::name_op(3, "AttentionMerge");
  tk::name_op(4, "OProj");
  tk::name_op(5, "AttnReduce");
  tk::name_op(6, "GateUp");
  tk::name_op(7, "Down");
  tk::name_op(8, "MlpReduce");
  tk::name_op(9, "QkvWindow32");
  tk::name_op(10, "AttentionWindow32");
  tk::name_op(11, "Router");
  tk::name_op(12, "Route");
  tk::name_op(13, "ExpertsUp");
  tk::name_op(14, "ExpertsDown");
  tk::name_op(15, "MoeReduce");
  tk::name_op(16, "Head");
  tk::name_op(17, "Commit");
  if (tk::warp() == 0) {
    for (u32 i = 0; i < Config::kWStages; ++i) {
      tk::mbar_init(sb + S::kWFull + 8 * i, 1);
      tk::mbar_init(sb + S::kWEmpty + 8 * i, Config::kConsumerWarps);
      tk::mbar_name(sb + S::kWFull + 8 * i, "weights full", i);
      tk::mbar_name(sb + S::kWEmpty + 8 * i, "weights empty", i);
    }
    for (u32 i = 0; i < Config::kASlots; ++i) {
      tk::mbar_init(sb + S::kAFull + 8 * i, Config::kActWarps);
      tk::mbar_init(sb + S::kAEmpty + 8 * i, Config::kConsumerWarps);
      tk::mbar_name(sb + S::kAFull + 8 * i, "activations full", i);
      tk::mbar_name(sb + S::kAEmpty + 8 * i, "activations empty", i);
    }
    for (u32 i = 0; i < Config::kXSlots; ++i) {
      tk::mbar_init(sb + S::kXFull + 8 * i, Config::kConsumerWarps);
      tk::mbar_init(sb + S::kXEmpty + 8 * i, 1);
      tk::mbar_name(sb + S::kXFull + 8 * i, "exchange full", i);
      tk::mbar_name(sb + S::kXEmpty + 8 * i, "exchange empty", i);
    }
    // Everyone releases the routing record: loader, store, activation and consumer warps.
    tk::mbar_init(sb + S::kRFull, 1);
    tk::mbar_init(sb + S::kREmpty, 2 + Config::kActWarps + Config::kConsumerWarps);
    tk::mbar_name(sb + S::kRFull, "routing full", 0);
    tk::mbar_name(sb + S::kREmpty, "routing empty", 0);
    tk::fence_mbar_init();
  }
}
}  // namespace

TK_KERNEL(tilecc_mimo_tiny, 256)(TK_GRID_CONST tilecc_params p) {
  init_barriers();
  // Read before the first hand-off: the epoch changes only after every CTA has arrived in this launch.
  const uint32_t epoch = tk::ldg32(p.workspace + ws::kState + offsetof(State, epoch));
  const uint32_t turn = tk::ldg32(p.workspace + ws::kState + offsetof(State, turn));
  prime(p);
  tk::cta_sync();
  const uint32_t warp = tk::warp();
  if (warp >= 0 && warp < 1) {
    if (tk::elect()) run_role<Role::kLoader>(p, epoch, turn, 0);
  } else if (warp >= 1 && warp < 2) {
    run_role<Role::kStore>(p, epoch, turn, 1);
  } else if (warp >= 2 && warp < 4) {
    run_role<Role::kActivations>(p, epoch, turn, 2);
  } else if (warp >= 4 && warp < 8) {
    run_role<Role::kConsumer>(p, epoch, turn, 4);
  }
}
TK_EMU_ENTRY(tilecc_mimo_tiny, tilecc_params)
