// Bounds: named regions of shared memory, registered buffers of global memory.
#include <algorithm>

#include "engine.h"

namespace tk_emu {

std::string smem_name(CtaState* cta, uint32_t addr) {
  for (const MBarrier* b : cta->barriers)
    if (addr >= b->addr && addr < b->addr + 8)
      return b->name ? text("mbarrier %s[%u]", b->name, b->index) : text("mbarrier at shared offset %u", addr - kSmemBase);
  for (const Region& r : cta->regions)
    if (addr >= r.addr && addr - r.addr < r.bytes)
      return text("%s + %u (shared offset %u)", r.name.c_str(), addr - r.addr, addr - kSmemBase);
  return text("shared offset %d", static_cast<int>(addr - kSmemBase));
}

static std::string smem_extent(CtaState* cta, uint32_t addr, uint32_t bytes) {
  for (const Region& r : cta->regions)
    if (addr >= r.addr && addr - r.addr < r.bytes)
      return text("region %s holds %u bytes; the access covers bytes %u to %u of it", r.name.c_str(), r.bytes,
                  addr - r.addr, addr - r.addr + bytes - 1);
  return text("%zu regions are declared in %u bytes of shared memory; the access starts in none of them",
              cta->regions.size(), cta->smem_bytes);
}

void smem_region(const char* name, uint32_t addr, uint32_t bytes, Site site) {
  CtaState* cta = my_cta();
  for (const Region& r : cta->regions)
    if (r.addr == addr && r.bytes == bytes && r.name == name) return;  // every thread declares it
  const uint32_t o = addr - kSmemBase;
  if (!bytes || (addr & 7) || o >= cta->smem_bytes || cta->smem_bytes - o < bytes)
    fatal("TC0903", text("region %s of %u bytes at shared offset %d does not fit into %u bytes, or does not start at a "
                         "multiple of 8",
                         name, bytes, static_cast<int>(o), cta->smem_bytes),
          site);
  for (const Region& r : cta->regions)
    if (addr < r.addr + r.bytes && r.addr < addr + bytes)
      fatal("TC0903", text("region %s [%u, %u) overlaps region %s [%u, %u)", name, o, o + bytes, r.name.c_str(),
                           r.addr - kSmemBase, r.addr - kSmemBase + r.bytes),
            site, {"declared at " + place(r.site)});
  if (!cta->declared) {
    cta->declared = true;
    for (uint16_t& g : cta->granule_storage)
      if (g < kBarrierId) g = 0;
  }
  cta->regions.push_back({name, addr, bytes, site});
  const uint16_t id = static_cast<uint16_t>(cta->regions.size() + 1);
  for (uint32_t g = o >> 3; g < (o + bytes + 7) >> 3; g++)
    if (cta->granule[g] < kBarrierId) cta->granule[g] = id;
}

void smem_range(CtaState* cta, uint32_t addr, uint32_t bytes, uint32_t align, const char* what, Site site) {
  const uint32_t o = addr - kSmemBase;
  if (addr & (align - 1))
    fatal("TC0905", text("%s: %s at %s is not aligned to %u bytes", who_now().c_str(), what,
                         smem_name(cta, addr).c_str(), align),
          site);
  bool inside = o < cta->smem_bytes && cta->smem_bytes - o >= bytes;
  const char* reason = "leaves shared memory";
  if (inside) {
    const uint16_t id = cta->granule[o >> 3];
    for (uint32_t g = o >> 3; inside && g <= (o + bytes - 1) >> 3; g++) {
      if (cta->granule[g] == id && id && id < kBarrierId) continue;
      inside = false;
      reason = cta->granule[g] >= kBarrierId ? "touches an mbarrier" : !id ? "is outside every region" : "crosses the end of its region";
    }
    // The last granule of a region may be half used.
    if (inside && cta->declared) {
      const Region& r = cta->regions[id - 2];
      inside = addr + bytes <= r.addr + r.bytes;
      reason = "crosses the end of its region";
    }
  }
  if (!inside)
    fatal("TC0903", text("%s: %s of %u bytes at %s %s", who_now().c_str(), what, bytes, smem_name(cta, addr).c_str(), reason),
          site, {smem_extent(cta, addr, bytes)});
}

void smem_slow(uint32_t addr, uint32_t bytes, const char* what, Site site) {
  smem_range(my_cta(), addr, bytes, bytes, what, site);
}

// ---- global memory ------------------------------------------------------------------------------------

const Buffer* buffer_of(const void* p) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  const std::vector<Buffer>& all = engine->buffers;
  auto it = std::upper_bound(all.begin(), all.end(), a, [](uintptr_t v, const Buffer& b) { return v < b.lo; });
  if (it == all.begin()) return nullptr;
  --it;
  return a - it->lo < it->bytes ? &*it : nullptr;
}

std::string global_name(const void* p) {
  if (!p) return "the null pointer";
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (const Buffer* b = buffer_of(p))
    return text("%s + %llu", b->name.c_str(), static_cast<unsigned long long>(a - b->lo));
  // Name the nearest buffer, before its begin or behind its end.
  const Buffer* best = nullptr;
  uintptr_t distance = ~static_cast<uintptr_t>(0);
  for (const Buffer& b : engine->buffers) {
    const uintptr_t d = a < b.lo ? b.lo - a : a - (b.lo + b.bytes) + 1;
    if (d < distance) distance = d, best = &b;
  }
  if (!best || distance > (1u << 30)) return text("%p, far from every buffer", p);
  if (a < best->lo)
    return text("%llu bytes before %s", static_cast<unsigned long long>(best->lo - a), best->name.c_str());
  return text("%s + %llu, past its %llu bytes", best->name.c_str(), static_cast<unsigned long long>(a - best->lo),
              static_cast<unsigned long long>(best->bytes));
}

const Buffer* global_range(const void* p, uint64_t bytes, uint32_t align, bool write, const char* what, Site site) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a & (align - 1))
    fatal("TC0905", text("%s: %s at %s is not aligned to %u bytes", who_now().c_str(), what, global_name(p).c_str(), align),
          site);
  const Buffer* b = buffer_of(p);
  if (!b || b->bytes - (a - b->lo) < bytes) {
    std::vector<std::string> notes;
    if (b) notes.push_back(text("%s holds %llu bytes", b->name.c_str(), static_cast<unsigned long long>(b->bytes)));
    fatal("TC0904", text("%s: %s of %llu bytes at %s is outside the registered buffers", who_now().c_str(), what,
                         static_cast<unsigned long long>(bytes), global_name(p).c_str()),
          site, notes);
  }
  if (!b->peer && cur->cta->rank != static_cast<uint32_t>(b->rank))
    fatal("TC0904", text("%s: %s at %s, which belongs to rank %d and is not shared with its peers", who_now().c_str(), what,
                         global_name(p).c_str(), b->rank),
          site);
  if (write && b->mode == TK_EMU_READ_ONLY)
    fatal("TC0910", text("%s: %s writes to %s, which is read-only", who_now().c_str(), what, global_name(p).c_str()), site);
  return b;
}

void global_slow(WindowKind kind, const void* p, uint32_t bytes, const char* what, Site site) {
  const uint32_t align = kind == kUniformWindow ? 4 : bytes;
  const Buffer* b = global_range(p, bytes, align, kind == kWriteWindow, what, site);
  if (b->peer) window[kind] = {b->lo, b->bytes};  // the window does not know ranks
}

}  // namespace tk_emu
