// cp.async and bulk reductions.
#include <string.h>

#include "race.h"

namespace tk_emu {

// ---- cp.async -----------------------------------------------------------------------------------------

static void land_copy(CtaState* cta, ThreadCopy& c) {
  if (c.landed) return;
  c.landed = true;
  uint8_t* to = cta->smem + (c.dst - kSmemBase);
  memset(to, 0, 16);
  memcpy(to, c.src, c.bytes);
}

void cp_async(uint32_t dst, const void* src, uint32_t bytes, const char* what, Site site) {
  preempt_point();
  CtaState* cta = my_cta();
  count(kCpAsync);
  count(kCpAsyncBytes, bytes);
  if (bytes > 16)
    fatal("TC0905", text("%s: %s of %u bytes; at most 16", who_now().c_str(), what, bytes), site);
  smem_range(cta, dst, 16, 16, what, site);
  if (bytes) global_range(src, bytes, 16, false, what, site);
  if (shadow_on) {
    if (bytes) shadow_global(kReadWindow, src, bytes, what, site);
    shadow_smem(dst, 16, true, what, site);
    forget_written(cta, dst, 16);  // until the wait
  }
  memset(cta->smem + (dst - kSmemBase), 0xff, 16);
  Thread* t = self();
  t->copies.push_back({dst, bytes, static_cast<const uint8_t*>(src), 0, false, site});
  const uint32_t landing = engine->options.landing;
  if (landing == TK_EMU_LAND_AT_ONCE || (landing == TK_EMU_LAND_RANDOM && random_bits() & 1)) land_copy(cta, t->copies.back());
}

void cp_async_commit() {
  preempt_point();
  Thread* t = self();
  t->copy_groups++;
  for (ThreadCopy& c : t->copies)
    if (!c.group) c.group = t->copy_groups;
}

void cp_async_wait(uint32_t keep) {
  preempt_point();
  Thread* t = self();
  size_t kept = 0;
  for (size_t i = 0; i < t->copies.size(); i++) {
    ThreadCopy& c = t->copies[i];
    if (c.group && c.group + keep <= t->copy_groups) {
      land_copy(my_cta(), c);
      if (shadow_on) {  // nobody may have read it before, or written its source
        if (c.bytes) shadow_global(kReadWindow, c.src, c.bytes, "cp_async16", c.site);
        shadow_smem(c.dst, 16, true, "cp_async16", c.site);
      }
    } else {
      t->copies[kept++] = c;
    }
  }
  t->copies.resize(kept);
}

void check_thread_exit() {
  const Thread* t = self();
  if (t->copies.empty()) return;
  const ThreadCopy& c = t->copies.front();
  if (!engine->reported_pairs.insert(0xfffffffd00000000ull | c.site.line()).second) return;  // one lane speaks for all
  finding("TC0909", text("%s returns from the kernel with a cp_async to %s that was not waited for", who_now().c_str(),
                         smem_name(my_cta(), c.dst).c_str()),
          c.site, {c.group ? "its group was committed; cp_async_wait<0> is missing" : "it was never committed"});
}

// ---- bulk reductions ------------------------------------------------------------------------------------

static void add(uint8_t* to, const uint8_t* from, uint32_t bytes, ReduceType type) {
  const uint32_t size = type == ReduceType::kBf16 ? 2 : 4;
  for (uint32_t o = 0; o < bytes; o += size) {
    uint32_t a = 0, b = 0, sum;
    memcpy(&a, to + o, size);
    memcpy(&b, from + o, size);
    if (type == ReduceType::kU32) sum = a + b;
    else if (type == ReduceType::kF32) sum = tk::f2u(tk::canonical(tk::u2f(a) + tk::u2f(b)));
    else sum = bf16_fma(a, 0x3f80u, b);
    memcpy(to + o, &sum, size);
  }
}

void bulk_reduce_add(void* dst, uint32_t src, uint32_t bytes, ReduceType type, const char* what, Site site) {
  preempt_point();
  count(kBulkStore);
  count(kBulkStoreBytes, bytes);
  if (!bytes || bytes % 16)
    fatal("TC0905", text("%s: %s of %u bytes; the size must be a multiple of 16", who_now().c_str(), what, bytes), site);
  smem_range(my_cta(), src, bytes, 16, what, site);
  global_range(dst, bytes, 16, true, what, site);
  uint8_t* to = static_cast<uint8_t*>(dst);
  Store s{to, src, bytes, 0, false, false, {}, site, [=](const uint8_t* data) { add(to, data, bytes, type); }};
  if (shadow_on) {
    WarpState* w = my_warp();
    const uint32_t group = static_cast<uint32_t>(w->groups) + 1;
    shadow_async_smem(my_cta(), src, bytes, false, {store_read_agent(w->number), group, false, true}, what, site);
    shadow_async_global(dst, bytes, true, {store_write_agent(w->number), group, true, true}, what, site);
  }
  issue_store(std::move(s));
}

}  // namespace tk_emu
