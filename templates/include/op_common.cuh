// What every op of the persistent kernel shares: the rings, the op table, waits and arrivals, and the address of an
// activation in MMA-fragment order. Arithmetic of tile bodies is not here: it is emitted from TIRx (declared below).
#pragma once
#include "tk_prim.cuh"
#include "tilecc_params.h"

// ---- what tile bodies may call besides the wrappers of the primitive header ----------------------------------------
TK_FN int tk_is_nan(float x) { return (tk::f2u(x) & 0x7fffffffu) > 0x7f800000u ? 1 : 0; }
TK_FN float tk_max(float a, float b) { return tk::fmax_(a, b); }

// ---- tile bodies, defined by the emitted kernel (TIRx) -------------------------------------------------------------
TK_FN float norm_rstd(float sum_sq, float inv_n, float eps);
TK_FN float norm_apply(float x, float rstd, float w);
TK_FN void rope_pair(float a, float b, float c, float s, float* out2);
TK_FN float swiglu(float gate, float up);
TK_FN void argmax_pair(float va, int ia, float vb, int ib, float* v1, int* i1);
TK_FN void softmax_online(float m_old, float s_max, float* m_new1, float* rescale1);
TK_FN float softmax_p(float s, float m);

// Loops with run-time trip counts stay rolled: what nvcc would unroll by four costs registers and instruction cache.
#if defined(__CUDACC__)
#define TILECC_ROLLED _Pragma("unroll 1")
#define TILECC_PRAGMA(text) _Pragma(#text)
#define TILECC_UNROLL(n) TILECC_PRAGMA(unroll(n))
#else
#define TILECC_ROLLED
#define TILECC_UNROLL(n)
#endif

namespace tilecc {
using tk::smem_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr int kRows = TILECC_MAX_ROWS;  // token rows of a step: the N side of mma.m16n8k16, eight to a row tile
constexpr int kRowTiles = kRows / 8;
static_assert(kRows == 8 || kRows == 16 || kRows == 32 || kRows == 64, "a step has 1, 2, 4 or 8 row tiles");
constexpr int kBlockCols = 128;  // columns of one weight block: 8 k16 steps
constexpr int kSelections = kRows * 8;    // of all rows: top-8 at most
constexpr int kMaxActive = kSelections;   // distinct experts of a step
constexpr int kMaxStarts = 16;   // splits of a down projection + 1 at most
constexpr u32 kTurns = 3;         // slots of words that are their own flags
constexpr u32 kNoCounter = 0xffffffffu;
constexpr u32 kImageUnit = 256;  // image offsets in the op table count these bytes

// Activations wait in fragment order, as bf16 times 2^96 (exact): weight codes enter the MMA as bf16 fields that are 2^-120
// or 2^-126 too small (mma_formats.cuh), and so every sum of products is an ordinary float32 number. Values below 2^31 fit.
constexpr float kActFactor = 0x1p96f, kActRest = 0x1p-96f;
constexpr float kNegInf = -__builtin_huge_valf();

enum class Role { kLoader, kStore, kActivations, kConsumer };

// One dependence of an op: the counter of the producing op must have seen all CTAs for instance `ordinal` of this step
// (0 or negative: of the step before).
struct Wait {
  u32 counter;
  u32 per_step;
  int32_t ordinal;
};

// One row of the op table: per-layer facts of one op of the rolled layer loop.
struct OpRow {
  u32 present;
  u32 layer;
  u32 weights;  // image offset, kImageUnit bytes
  u32 norm;     // image offset of the norm weights that y takes (ops that write the residual)
  u32 aux;      // image offset: rope table, router bias, or attention sink
  u32 kv;       // KV cache offset of the layer, kImageUnit bytes
  u32 n_waits;
  u32 reserved;
  Wait waits[3];
  u32 pushed, polled;  // which turn of the step in the words that the op hands on, and is handed, as flags
  u32 pad;
};
static_assert(sizeof(OpRow) == 80, "the compiler writes 80-byte rows");

// Device state that outlives a launch.
struct State {
  u32 epoch;       // steps executed since the session began
  u32 stop;        // after a stop token the epoch that does not run any more: the rest of the launch is skipped
  int32_t token;   // argmax of the last row of the previous step
  u32 turn;        // epoch modulo kTurns: the epoch itself wraps
  u32 primed;      // the words that are flags hold poison or data
  u32 reserved[27];
  u32 filled;      // warps that have filled their share of those words with poison
  u32 reserved_too[31];
};

struct Ring {
  u32 slot, phase;
  template <int N>
  TK_FN void advance() {
    if (++slot == N) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Activations lie in B-fragment order: [128 columns][row tile][k16 step][lane][4 bf16]. The place of a k16 step of a row
// tile, counted in fragments of 256 bytes; `step` counts from a multiple of 128 columns.
TK_FN u32 frag_step(u32 step, u32 row_tile) { return kRowTiles == 1 ? step : (step / 8 * kRowTiles + row_tile) * 8 + step % 8; }
// Byte address of element (row n, column k): lane = 4 (n % 8) + (k % 8) / 2 holds 2 (k % 16 / 8) + k % 2.
TK_FN u32 frag_bytes(u32 n, u32 k) {
  return ((frag_step(k >> 4, n >> 3) * 32 + (n & 7) * 4 + ((k & 7) >> 1)) * 4 + ((k & 15) >> 3) * 2 + (k & 1)) * 2;
}
// Two neighbouring elements as an activation keeps them.
TK_FN u32 act_bf16x2(float a, float b) { return tk::cvt_bf16x2(a * kActFactor, b * kActFactor); }
// The same element of an f32 partial: 4 bytes per element.
TK_FN u32 frag_f32_bytes(u32 n, u32 k) { return frag_bytes(n, k) * 2; }

// Shared memory of one CTA. Everything is 128-byte aligned because bulk copies land here.
template <class C>
struct Smem {
  static constexpr u32 kBarriers = 0;
  static constexpr u32 kWFull = kBarriers, kWEmpty = kWFull + 8 * C::kWStages;
  static constexpr u32 kAFull = kWEmpty + 8 * C::kWStages, kAEmpty = kAFull + 8 * C::kASlots;
  static constexpr u32 kXFull = kAEmpty + 8 * C::kASlots, kXEmpty = kXFull + 8 * C::kXSlots;
  static constexpr u32 kRFull = kXEmpty + 8 * C::kXSlots, kREmpty = kRFull + 8;
  static constexpr u32 kBarrierBytes = (kREmpty + 8 + 127) / 128 * 128;
  static constexpr u32 kWeights = kBarrierBytes;
  static constexpr u32 kActs = kWeights + C::kWStages * C::kWStageBytes;
  static constexpr u32 kExchange = kActs + C::kASlots * C::kASlotBytes;
  static constexpr u32 kRoute = kExchange + C::kXSlots * C::kXSlotBytes;
  // Routing record: n_active | expert ids | weights | selected ids [row][k] | selected weights [row][k] | starts. Up to 16
  // rows the weights are [slot][row]; more rows would leave no room for the rings, so their weights are a list in the order
  // of slots and rows, behind it for every slot the mask of its rows (two words) and where its weights begin.
  static constexpr bool kRouteDense = kRows <= 16;
  static constexpr u32 kRouteIds = 16, kRouteWeights = kRouteIds + 4 * kMaxActive;
  static constexpr u32 kRouteMasks = kRouteWeights + 4 * kSelections, kRouteFirst = kRouteMasks + 8 * kMaxActive;
  static constexpr u32 kRouteSelIds = kRouteDense ? kRouteWeights + 4 * kMaxActive * kRows : kRouteFirst + 4 * kMaxActive;
  static constexpr u32 kRouteSelWeights = kRouteSelIds + 4 * kSelections;
  // place in the list where each split of the down projection starts, and the end
  static constexpr u32 kRouteStarts = kRouteSelWeights + 4 * kSelections;
  static constexpr u32 kRouteBytes = (kRouteStarts + 4 * kMaxStarts + 127) / 128 * 128;
  static constexpr u32 kTotal = kRoute + kRouteBytes;
};

// Routing weights of one place in the active list.
template <class S>
struct SlotWeights {
  smem_t at;         // of the weights of row 0 (a list: of the first row that has one)
  u32 rows[2] = {};  // a list: mask of the rows that have one

  TK_FN SlotWeights(smem_t route, u32 slot) {
    if constexpr (S::kRouteDense) {
      at = route + S::kRouteWeights + slot * kRows * 4;
    } else {
      const tk::u32x2 mask = tk::lds64(route + S::kRouteMasks + slot * 8);
      rows[0] = mask.x, rows[1] = mask.y;
      at = route + S::kRouteWeights + tk::lds32(route + S::kRouteFirst + slot * 4) * 4;
    }
  }
  // Of rows n and n + 1 of a row tile, n even: bits of float32, 0 for a row that is not routed here.
  TK_FN tk::u32x2 pair(u32 row_tile, u32 n) const {
    if constexpr (S::kRouteDense) {
      return tk::lds64(at + (row_tile * 8 + n) * 4);
    } else {
      const u32 word = row_tile < 4 ? rows[0] : rows[1], bit = row_tile % 4 * 8 + n;
      const u32 mine = word >> bit & 3u, below = tk::popc(word & ((1u << bit) - 1)) + (row_tile < 4 ? 0 : tk::popc(rows[0]));
      const smem_t first = at + 4 * below;
      tk::u32x2 w = {0, 0};
      if ((mine & 1u) != 0) w.x = tk::lds32(first);
      if ((mine & 2u) != 0) w.y = tk::lds32(first + 4 * (mine & 1u));
      return w;
    }
  }
};

// What a warp carries through the program: where it is in each ring, which step it runs, and its kernel parameters.
template <class C>
struct Ctx {
  using S = Smem<C>;
  tilecc_params p;
  smem_t sb;
  u32 cta, ncta, lane, warp;  // warp: index within its role
  u32 base;                   // epoch at launch
  u32 step;                   // step of this launch
  u32 turn;                   // (base + step) modulo kTurns
  u32 n_rows;                 // rows of this step
  u32 table_row;              // of the op that runs
  Ring w, a, x;               // weight ring, activation ring, exchange
  u32 route_phase;
  tk::Watch watch;

  TK_FN const tilecc_step* step_desc() const { return p.steps + step; }
  TK_FN const tilecc_row* row(u32 n) const { return step_desc()->rows + n; }
  TK_FN u32* counter(u32 id) const { return reinterpret_cast<u32*>(p.workspace + C::kCounters + id * 128); }
  TK_FN const State* state() const { return reinterpret_cast<const State*>(p.workspace + C::kState); }
  TK_FN const uint8_t* image(u32 units) const { return p.image + static_cast<u64>(units) * kImageUnit; }
  TK_FN smem_t w_full(u32 i) const { return sb + S::kWFull + 8 * i; }
  TK_FN smem_t w_empty(u32 i) const { return sb + S::kWEmpty + 8 * i; }
  TK_FN smem_t a_full(u32 i) const { return sb + S::kAFull + 8 * i; }
  TK_FN smem_t a_empty(u32 i) const { return sb + S::kAEmpty + 8 * i; }
  TK_FN smem_t x_full(u32 i) const { return sb + S::kXFull + 8 * i; }
  TK_FN smem_t x_empty(u32 i) const { return sb + S::kXEmpty + 8 * i; }
  TK_FN smem_t r_full() const { return sb + S::kRFull; }
  TK_FN smem_t r_empty() const { return sb + S::kREmpty; }
  TK_FN smem_t stage(u32 i) const { return sb + S::kWeights + i * C::kWStageBytes; }
  TK_FN smem_t act(u32 i) const { return sb + S::kActs + i * C::kASlotBytes; }
  TK_FN smem_t exchange(u32 i) const { return sb + S::kExchange + i * C::kXSlotBytes; }
  TK_FN smem_t route() const { return sb + S::kRoute; }
  TK_FN SlotWeights<S> slot_weights(u32 slot) const { return {route(), slot}; }

  // Row tiles that this step uses. What the others hold is computed with, where that costs nothing, and never read.
  TK_FN u32 row_tiles() const { return kRowTiles == 1 ? 1 : (n_rows + 7) / 8; }

  TK_FN u32 target(const Wait& w_) const { return ncta * ((base + step) * w_.per_step + static_cast<u32>(w_.ordinal)); }

  // Waits for every dependence of an op. Called by one converged warp; afterwards its lanes may read what the producers
  // wrote with ordinary and (after the proxy fence) asynchronous loads.
  TK_FN void wait_inputs(const OpRow& r) {
    if (r.n_waits > 0) tk::wait_ge(counter(r.waits[0].counter), target(r.waits[0]), watch);
    if (r.n_waits > 1) tk::wait_ge(counter(r.waits[1].counter), target(r.waits[1]), watch);
    if (r.n_waits > 2) tk::wait_ge(counter(r.waits[2].counter), target(r.waits[2]), watch);
    tk::fence_proxy_async();
    tk::syncwarp();
  }

  // Slot of words that are pushed `per_step` times a step, of push `ordinal` of this step or `ahead` later.
  TK_FN u32 slot(u32 per_step, u32 ordinal, u32 ahead = 0) const { return (turn * (per_step % kTurns) + ordinal + ahead) % kTurns; }

  // A CTA without tasks of an op must not arrive a lap ahead of the others, or its early arrival would stand in for one
  // that is still missing: it waits for the op's inputs like everyone else.
  TK_FN void wait_idle(const OpRow& r, u32 first, u32 tasks) {
    if (first >= tasks) wait_inputs(r);
  }

  // One arrival per (CTA, op), after all of this CTA's tiles: data-dependent tile counts do not change targets.
  TK_FN void arrive(u32 counter_id) {
    if (counter_id == kNoCounter) return;  // the next op that has a counter tells of this one, too
    tk::fence_proxy_async();
    tk::syncwarp();
    tk::red_release(counter(counter_id), 1);
    tk::syncwarp();
  }
};

// First task of this CTA when `rotation` tasks have been dealt before: remainders do not pile up on the same CTAs.
template <class C>
TK_FN u32 first_task(const Ctx<C>& c, u32 rotation) {
  const u32 shift = rotation % c.ncta;
  return c.cta >= shift ? c.cta - shift : c.cta + c.ncta - shift;
}
}  // namespace tilecc
