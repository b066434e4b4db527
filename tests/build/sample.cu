// A kernel of a few lines with the launch ABI of emitted ones, for tests of builders, launchers and devices.
// The "model": next token = (3 * sum of the sequence's tokens up to here + position) mod vocab. The sum is read
// from the KV buffer, the logits of a row are 1 at its next token. CTA 0 computes; the CTAs share the logits and
// meet at two counters per step, so a lost hand-off shows. Workspace: words 0, 32, 64 = epoch and the counters.
#include "tilecc_params.h"
#include "tk_prim.cuh"

namespace {
constexpr int kVocab = 64, kContext = 40;
}

TK_KERNEL(tilecc_sample, 64)(TK_GRID_CONST tilecc_params p) {
  using namespace tk;
  if (warp() != 0) return;
  u32* epoch = reinterpret_cast<u32*>(p.workspace);
  u32* ready = epoch + 32;
  u32* finished = epoch + 64;
  const Watch watch{p.status, 1, 2, 3, 4};
  // Written only after every CTA of a launch has finished, so all read the same value.
  const u32 before = ldg32(epoch);
  u32 done = 0;
  i32 last = -1;
  for (u32 s = 0; s < p.n_steps; s++) {
    const tilecc_step* step = p.steps + s;
    const i32 n = ldg_i32(&step->n_rows);
    if (cta() == 0) {
      if (elect()) {
        for (i32 i = 0; i < n; i++) {
          const tilecc_row* row = &step->rows[i];
          const i32 token = ldg_i32(&row->token);
          stg_i32(p.kv + 4 * (ldg_i32(&row->seq) * kContext + ldg_i32(&row->position)), token < 0 ? last : token);
        }
        for (i32 i = 0; i < TILECC_MAX_ROWS; i++) {
          i32 next = -1;
          if (i < n) {
            const tilecc_row* row = &step->rows[i];
            const i32 position = ldg_i32(&row->position);
            i32 sum = 0;
            for (i32 t = 0; t <= position; t++) sum += ldg_i32(p.kv + 4 * (ldg_i32(&row->seq) * kContext + t));
            next = (3 * sum + position) % kVocab;
          }
          stg_i32(p.tokens_out + s * TILECC_MAX_ROWS + i, next);
        }
      }
      syncwarp();
      red_release(ready, 1);
    }
    wait_ge(ready, before + s + 1, watch);
    syncwarp();
    last = ldg_i32(p.tokens_out + s * TILECC_MAX_ROWS + n - 1);
    if (p.logits != nullptr) {
      for (i32 i = 0; i < n; i++) {
        const i32 next = ldg_i32(p.tokens_out + s * TILECC_MAX_ROWS + i);
        float* logits = p.logits + (s * TILECC_MAX_ROWS + i) * kVocab;
        for (u32 v = cta() * 32 + lane(); v < kVocab; v += 32 * ncta()) stg_f32(logits + v, i32(v) == next ? 1.0f : 0.0f);
      }
    }
    syncwarp();
    red_release(finished, 1);
    if (cta() == 0) {
      // A hang on purpose, for tests of the watchdog.
      const u32 wanted = p.flags == 1 ? 1u : 0u;
      wait_ge(finished, (before + s + 1) * ncta() + wanted, watch);
      syncwarp();
    }
    done = s + 1;
    bool stop = false;
    for (u32 k = 0; k < p.n_stop; k++) stop = stop || ldg_i32(p.stop_ids + k) == last;
    if (stop) break;
  }
  if (cta() == 0 && elect()) {
    for (u32 s = done; s < p.n_steps; s++)
      for (i32 i = 0; i < TILECC_MAX_ROWS; i++) stg_i32(p.tokens_out + s * TILECC_MAX_ROWS + i, -1);
    stg32(epoch, before + done);
  }
}
TK_EMU_ENTRY(tilecc_sample, tilecc_params)
