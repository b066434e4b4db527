// wgmma: asynchronous products of a warpgroup. A warp's operations run in order, at the latest legal moment if asked;
// meanwhile its accumulators hold NaN.
#include <string.h>

#include <deque>

#include "race.h"

namespace tk_emu {

// Registers of one accumulator array, over the lanes.
struct Accumulator {
  float* of[kLanes];
  int count;
  std::vector<float> value;  // [lane][count]: what the hardware holds
  uint32_t pending = 0;      // operations not waited for
};

struct WgmmaOperation {
  uint64_t a, b;
  bool a_in_registers, accumulate, fp8, done;
  int columns;
  uint64_t group;  // 0 while not committed
  std::shared_ptr<Accumulator> accumulator;
  std::vector<uint32_t> registers;  // [lane][4]
  Site site;
};

struct WgmmaState {
  std::deque<WgmmaOperation> operations;
  std::vector<std::shared_ptr<Accumulator>> accumulators;
  uint64_t groups = 0;    // committed so far
  uint64_t sequence = 0;  // of what was issued: equal in the warps of a group
  bool fenced = false;    // since the latest wait
  uint32_t agent = 0;
};

namespace {

constexpr uint32_t kPoison = 0xffffffffu;

WgmmaState& state_of(WarpState* warp) {
  if (!warp->wgmma) {
    warp->wgmma = std::make_shared<WgmmaState>();
    warp->wgmma->agent = warp->clocks.agent + kAsyncPart;
  }
  return *warp->wgmma;
}

[[noreturn]] void misuse(const std::string& what, Site site, const std::vector<std::string>& notes = {}) {
  fatal("TC0942", who_now() + ": " + what, site, notes);
}

// Shared address of a 16-byte piece of a K-major matrix: row, and which half of the step's 32 bytes.
uint32_t piece(uint64_t desc, uint32_t row, uint32_t half) {
  const uint32_t start = static_cast<uint32_t>(desc & 0x3fffu) << 4;
  const uint32_t lbo = static_cast<uint32_t>(desc >> 16 & 0x3fffu) << 4, sbo = static_cast<uint32_t>(desc >> 32 & 0x3fffu) << 4;
  if (desc >> 62 == 0) return start + row / 8 * sbo + row % 8 * 16 + half * lbo;
  const uint32_t a = start + row / 8 * sbo + row % 8 * 128 + half * 16;
  return a ^ ((a >> 7 & 7u) << 4);
}

void check_matrix(uint64_t desc, uint32_t first, uint32_t rows, const char* what, uint32_t agent, uint32_t group, Site site) {
  const uint64_t mode = desc >> 62;
  if (mode > 1 || desc >> 49 & 7u)
    misuse(text("%s: the descriptor %#llx has another swizzle than none and 128 bytes, or a base offset", what,
                static_cast<unsigned long long>(desc)),
           site, {"wgmma_desc and wgmma_desc_128b make descriptors"});
  const uint32_t start = static_cast<uint32_t>(desc & 0x3fffu) << 4;
  if (mode == 1 && (start & 1023u) >= 128u)
    misuse(text("%s: the swizzled matrix at %s does not start in the first row of an area aligned to 1024 bytes", what,
                smem_name(my_cta(), start).c_str()),
           site);
  const uint32_t origin = piece(desc, first, 0);
  for (uint32_t r = first; r < first + rows; r++)
    for (uint32_t half = 0; half < 2; half++) {
      const uint32_t at = piece(desc, r, half);
      smem_range(my_cta(), at, 16, 16, what, site);
      if (my_cta()->granule[(at - kSmemBase) >> 3] != my_cta()->granule[(origin - kSmemBase) >> 3])
        fatal("TC0903", text("%s: the matrix of a %s crosses from %s into %s in row %u", who_now().c_str(), what,
                             smem_name(my_cta(), origin).c_str(), smem_name(my_cta(), at).c_str(), r),
              site);
      if (shadow_on) shadow_async_smem(my_cta(), at, 16, false, {agent, group, false, true}, what, site);
    }
}

// One row of 32 bytes as numbers; returns how many.
int decode(const uint8_t* pieces, bool fp8, float* to) {
  if (fp8) {
    for (int i = 0; i < 32; i++) to[i] = element_value(MmaType::kE4m3, pieces[i]);
    return 32;
  }
  for (int i = 0; i < 16; i++) to[i] = tk::bf2f(pieces[2 * i] | static_cast<uint32_t>(pieces[2 * i + 1]) << 8);
  return 16;
}

void read_row(const CtaState* cta, uint64_t desc, uint32_t row, bool fp8, float* to) {
  uint8_t pieces[32];
  for (uint32_t half = 0; half < 2; half++) memcpy(pieces + 16 * half, cta->smem + (piece(desc, row, half) - kSmemBase), 16);
  decode(pieces, fp8, to);
}

void run(WarpState* warp, WgmmaOperation& o) {
  if (o.done) return;
  o.done = true;
  const CtaState* cta = static_cast<CtaState*>(warp->cta);
  const uint32_t first = warp->index % 4 * 16;
  const int K = o.fp8 ? 32 : 16;
  float a[16][32], b[64][32];
  if (o.a_in_registers) {
    for (int lane = 0; lane < kLanes; lane++)
      for (int i = 0; i < 4; i++) {
        const int row = (lane >> 2) + 8 * (i & 1), k = 2 * (lane & 3) + 8 * (i >> 1);
        a[row][k] = tk::bf_lo(o.registers[static_cast<size_t>(4 * lane + i)]);
        a[row][k + 1] = tk::bf_hi(o.registers[static_cast<size_t>(4 * lane + i)]);
      }
  } else {
    for (uint32_t r = 0; r < 16; r++) read_row(cta, o.a, first + r, o.fp8, a[r]);
  }
  for (int n = 0; n < o.columns; n++) read_row(cta, o.b, static_cast<uint32_t>(n), o.fp8, b[n]);
  for (int lane = 0; lane < kLanes; lane++)
    for (int i = 0; i < o.columns / 2; i++) {
      const int row = (lane >> 2) + 8 * (i >> 1 & 1), column = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
      float& d = o.accumulator->value[static_cast<size_t>(lane * o.accumulator->count + i)];
      float sum = o.accumulate ? d : 0.0f;
      for (int k = 0; k < K; k++) sum += a[row][k] * b[column][k];
      d = tk::canonical(sum);
    }
}

// The accumulator of this operation, new or still in flight.
std::shared_ptr<Accumulator> accumulator_of(Warp* warp, WgmmaState& s, int count, Site site) {
  float* first = static_cast<WgmmaSlot*>(warp->slot[0])->d;
  for (const std::shared_ptr<Accumulator>& a : s.accumulators) {
    if (a->of[0] == first && a->count == count) return a;
    if (first < a->of[0] + a->count && a->of[0] < first + count)
      misuse("this wgmma and one in flight use overlapping accumulators of different sizes", site);
  }
  if (!s.fenced)
    misuse("accumulators were free since the latest wait, and no wgmma_fence() precedes this wgmma", site,
           {"wgmma_fence() orders register accesses before the first wgmma that uses the registers"});
  auto made = std::make_shared<Accumulator>();
  made->count = count;
  for (int lane = 0; lane < kLanes; lane++) {
    float* d = static_cast<WgmmaSlot*>(warp->slot[lane])->d;
    made->of[lane] = d;
    made->value.insert(made->value.end(), d, d + count);
    memset(d, 0xff, sizeof(float) * static_cast<size_t>(count));
  }
  s.accumulators.push_back(made);
  return made;
}

// Gives registers back whose operations are all complete.
void settle(WgmmaState& s, Site site) {
  size_t kept = 0;
  for (size_t i = 0; i < s.accumulators.size(); i++) {
    std::shared_ptr<Accumulator> a = s.accumulators[i];
    if (a->pending) {
      s.accumulators[kept++] = a;
      continue;
    }
    for (int lane = 0; lane < kLanes; lane++)
      for (int r = 0; r < a->count; r++) {
        if (tk::f2u(a->of[lane][r]) != kPoison)
          misuse(text("lane %d wrote accumulator %d while a wgmma was in flight", lane, r), site);
        a->of[lane][r] = a->value[static_cast<size_t>(lane * a->count + r)];
      }
  }
  s.accumulators.resize(kept);
}

}  // namespace

uint64_t wgmma_desc(uint32_t a, uint32_t lbo, uint32_t sbo, bool swizzled, Site site) {
  if ((a | lbo | sbo) & 15u || a > 0x3ffffu || lbo > 0x3fff0u || sbo > 0x3fff0u || (swizzled && sbo % 1024))
    fatal("TC0942", text("%s: a wgmma descriptor of address %#x, offsets %u and %u; all are multiples of 16 below 2^18, and "
                         "sbo is a multiple of 1024 with the swizzle",
                         who_now().c_str(), a, lbo, sbo),
          site);
  return static_cast<uint64_t>(a >> 4) | static_cast<uint64_t>(lbo >> 4) << 16 | static_cast<uint64_t>(sbo >> 4) << 32 |
         static_cast<uint64_t>(swizzled) << 62;
}

void wgmma_issue(Warp* issuing, int columns, bool fp8, const char* what, Site site) {
  WarpState* warp = static_cast<WarpState*>(issuing);
  WgmmaState& s = state_of(warp);
  warp->counts[kWgmma]++;
  if ((warp->index / 4 + 1) * 128 > engine->options.threads)
    misuse(text("%s in a warpgroup of less than four warps", what), site);
  const WgmmaSlot& first = *static_cast<WgmmaSlot*>(warp->slot[0]);
  WgmmaOperation o{first.a, first.b, first.a_registers != nullptr, first.accumulate, fp8, false, columns, 0, nullptr, {}, site};
  for (int lane = 0; lane < kLanes; lane++) {
    const WgmmaSlot& slot = *static_cast<WgmmaSlot*>(warp->slot[lane]);
    if (slot.a != first.a || slot.b != first.b || slot.accumulate != first.accumulate)
      misuse(text("%s: lane %d gives other descriptors than lane 0", what, lane), site);
    if (slot.a_registers) o.registers.insert(o.registers.end(), slot.a_registers, slot.a_registers + 4);
  }
  const uint32_t group = static_cast<uint32_t>(s.groups) + 1;
  if (!o.a_in_registers) check_matrix(o.a, warp->index % 4 * 16, 16, what, s.agent, group, site);
  check_matrix(o.b, 0, static_cast<uint32_t>(columns), what, s.agent, group, site);
  o.accumulator = accumulator_of(warp, s, columns / 2, site);
  o.accumulator->pending++;
  for (uint64_t v : {o.a, o.b, static_cast<uint64_t>(columns) << 2 | (fp8 ? 2u : 0u) | (o.accumulate ? 1u : 0u)})
    s.sequence = (s.sequence ^ v) * 0x9e3779b97f4a7c15ull + 1;
  s.operations.push_back(std::move(o));
  const uint32_t landing = engine->options.landing;
  if (landing == TK_EMU_LAND_AT_ONCE || (landing == TK_EMU_LAND_RANDOM && random_bits() % 2))
    for (WgmmaOperation& each : s.operations) run(warp, each);
}

void wgmma_fence(Site site) {
  collective(nullptr, "wgmma_fence", site, [](Warp* w) {
    w->counts[kFenceWgmma]++;
    state_of(static_cast<WarpState*>(w)).fenced = true;
    release_all(w);
  });
}

void wgmma_commit(Site site) {
  collective(nullptr, "wgmma_commit", site, [](Warp* w) {
    WgmmaState& s = state_of(static_cast<WarpState*>(w));
    s.groups++;
    for (WgmmaOperation& o : s.operations)
      if (!o.group) o.group = s.groups;
    release_all(w);
  });
}

void wgmma_wait(uint32_t keep, Site site) {
  collective(nullptr, "wgmma_wait", site, [=](Warp* waiting) {
    WarpState* w = static_cast<WarpState*>(waiting);
    WgmmaState& s = state_of(w);
    while (!s.operations.empty()) {
      WgmmaOperation& o = s.operations.front();
      if (!o.group || o.group + keep > s.groups) break;
      run(w, o);
      o.accumulator->pending--;
      s.operations.pop_front();
    }
    settle(s, site);
    s.fenced = false;
    if (engine->races && s.groups > keep) {
      Clocks done;
      done.seen.raise(s.agent, static_cast<uint32_t>(s.groups - keep));
      done.proxied.raise(s.agent, static_cast<uint32_t>(s.groups - keep));
      acquire_by_warp(w, done);
    }
    release_all(w);
  });
}

void check_wgmma_exit(WarpState* warp) {
  const CtaState* cta = static_cast<CtaState*>(warp->cta);
  const uint64_t mine = warp->wgmma ? warp->wgmma->sequence : 0;
  if (warp->wgmma && !warp->wgmma->operations.empty())
    finding("TC0942", text("%s returns from the kernel with a wgmma that was not waited for", who_now().c_str()),
            warp->wgmma->operations.front().site);
  for (const WarpState* other : cta->warps) {
    if (other == warp || other->index / 4 != warp->index / 4 || !(other->exited & 1u)) continue;
    if ((other->wgmma ? other->wgmma->sequence : 0) == mine) continue;
    finding("TC0942", text("%s and warp %u of its warpgroup issued different sequences of wgmma", who_now().c_str(), other->index),
            Site::current(), {"wgmma is an operation of four warps: all must issue the same"});
    return;
  }
}

}  // namespace tk_emu
