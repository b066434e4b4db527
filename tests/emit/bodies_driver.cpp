// Array loops around the tile bodies, called through ctypes by test_bodies.py. BODIES_FILE is the emitted text.
#include "bodies_host.h"
#include BODIES_FILE

extern "C" {
void set_estimate_error(float e) { estimate_error = e; }
void run_norm_rstd(int n, const float* a, const float* b, const float* c, float* out) {
  for (int i = 0; i < n; ++i) out[i] = norm_rstd(a[i], b[i], c[i]);
}
void run_norm_apply(int n, const float* a, const float* b, const float* c, float* out) {
  for (int i = 0; i < n; ++i) out[i] = norm_apply(a[i], b[i], c[i]);
}
void run_rope_pair(int n, const float* a, const float* b, const float* c, const float* s, float* out) {
  for (int i = 0; i < n; ++i) rope_pair(a[i], b[i], c[i], s[i], out + 2 * i);
}
void run_swiglu(int n, const float* a, const float* b, float* out) {
  for (int i = 0; i < n; ++i) out[i] = swiglu(a[i], b[i]);
}
void run_sigmoid(int n, const float* a, float* out) {
  for (int i = 0; i < n; ++i) out[i] = sigmoid(a[i]);
}
void run_softmax_online(int n, const float* a, const float* b, float* m, float* r) {
  for (int i = 0; i < n; ++i) softmax_online(a[i], b[i], m + i, r + i);
}
void run_softmax_p(int n, const float* a, const float* b, float* out) {
  for (int i = 0; i < n; ++i) out[i] = softmax_p(a[i], b[i]);
}
void run_argmax_pair(int n, const float* va, const int* ia, const float* vb, const int* ib, float* v, int* id) {
  for (int i = 0; i < n; ++i) argmax_pair(va[i], ia[i], vb[i], ib[i], v + i, id + i);
}

#define MERGE(N)                                                                                     \
  void run_softmax_merge_##N(int n, float* m, float* d, const float* sink, float* scale) {           \
    for (int i = 0; i < n; ++i) softmax_merge_##N(m + i * N, d + i * N, sink[i], scale + i * N);      \
  }                                                                                                  \
  void run_softmax_combine_##N(int n, float* m, float* d, float* m1, float* d1, float* scale) {      \
    for (int i = 0; i < n; ++i) softmax_combine_##N(m + i * N, d + i * N, m1 + i, d1 + i, scale + i * N); \
  }
MERGE(1) MERGE(4) MERGE(8)

// logits, bias: [n][E]. ids, weights: [n][lane 32][K]. Returns the rows whose lanes diverged at a shuffle.
#define ROUTER(E, K)                                                                                           \
  int run_router_topk_e##E##_k##K(int n, const float* logits, const float* bias, float scaling, int norm,      \
                                  int* ids, float* weights) {                                                  \
    constexpr int kSlots = (E + 31) / 32;                                                                      \
    int diverged = 0;                                                                                          \
    for (int row = 0; row < n; ++row) {                                                                        \
      const bool converged = run_warp([&](int lane) {                                                          \
        float l[kSlots], b[kSlots];                                                                            \
        for (int i = 0; i < kSlots; ++i) {                                                                     \
          const int e = i * 32 + lane; /* slots past the last expert hold the most tempting garbage */         \
          l[i] = e < E ? logits[row * E + e] : 100.0f;                                                         \
          b[i] = e < E ? bias[row * E + e] : 100.0f;                                                           \
        }                                                                                                      \
        const int at = (row * kLanes + lane) * K;                                                              \
        router_topk_e##E##_k##K(l, b, lane, scaling, norm, ids + at, weights + at);                            \
      });                                                                                                      \
      diverged += !converged;                                                                                  \
    }                                                                                                          \
    return diverged;                                                                                           \
  }
ROUTER(1, 1) ROUTER(8, 8) ROUTER(10, 3) ROUTER(16, 4) ROUTER(40, 8) ROUTER(384, 8)
}
