// Tensor maps and tensor copies.
#include <stdio.h>
#include <string.h>

#include "race.h"
#include "tilecc_tensor.h"

namespace tk_emu {

namespace {

constexpr uint64_t kMapMagic = 0x74637061'6d5f6b74ull;

// Content of a tmap_t.
struct Map {
  uint64_t magic;
  tilecc_tensor tensor;
};
static_assert(sizeof(Map) <= sizeof(tk::tmap_t));

Map map_of(const tk::tmap_t* map, uint32_t rank, const char* what, Site site) {
  Map m;
  memcpy(&m, map, sizeof m);
  if (m.magic != kMapMagic)
    fatal("TC0940", text("%s: %s through something that is not a tensor map", who_now().c_str(), what), site,
          {"tk_emu_encode_map makes the emulator's maps"});
  if (m.tensor.rank != rank)
    fatal("TC0940", text("%s: %s through a tensor map of rank %u", who_now().c_str(), what, m.tensor.rank), site);
  return m;
}

uint32_t box_bytes(const tilecc_tensor& t) {
  uint32_t n = tilecc_element_bytes(t.type);
  for (uint32_t d = 0; d < t.rank; d++) n *= t.box[d];
  return n;
}

// The hardware raises an illegal instruction (H100) where a box does not start at a multiple of 16 bytes.
void check_start(const tilecc_tensor& t, const BoxAt& at, const char* what, Site site) {
  const int64_t start = static_cast<int64_t>(at.at[0]) * tilecc_element_bytes(t.type);
  if (start % 16)
    fatal("TC0905", text("%s: %s at coordinate %d of dimension 0, byte %lld; boxes start at multiples of 16 bytes",
                         who_now().c_str(), what, at.at[0], static_cast<long long>(start)),
          site);
}

// So it does where a box that is stored starts before the tensor, along any dimension; a load may. And where such a box
// crosses the end of dimension 0, the rest of the last 16 bytes is written too.
void check_store(const tilecc_tensor& t, const BoxAt& at, const char* what, Site site) {
  for (uint32_t d = 0; d < t.rank; d++)
    if (at.at[d] < 0)
      fatal("TC0905", text("%s: %s at coordinate %d of dimension %u; boxes that are stored start inside the tensor or past it",
                           who_now().c_str(), what, at.at[d], d),
            site);
  const int64_t size = tilecc_element_bytes(t.type), end = static_cast<int64_t>(t.dims[0]) * size;
  if (end % 16 && at.at[0] * size < end && (at.at[0] + static_cast<int64_t>(t.box[0])) * size > end)
    fatal("TC0905", text("%s: %s crosses the end of dimension 0 at byte %lld; the hardware stores multiples of 16 bytes",
                         who_now().c_str(), what, static_cast<long long>(end)),
          site);
}

// A row of a box: its part inside the tensor.
struct Row {
  uint8_t* global;
  uint32_t offset, bytes;  // in the box, before the swizzle
};

template <class Visit>
void for_rows(const tilecc_tensor& t, const BoxAt& at, Visit&& visit) {
  const int64_t size = tilecc_element_bytes(t.type);
  const int64_t ny = t.rank > 1 ? t.box[1] : 1, nz = t.rank > 2 ? t.box[2] : 1;
  int64_t first = at.at[0] < 0 ? -static_cast<int64_t>(at.at[0]) : 0;
  int64_t last = static_cast<int64_t>(t.dims[0]) - at.at[0];
  if (last > t.box[0]) last = t.box[0];
  if (first >= last) return;
  for (int64_t z = 0; z < nz; z++) {
    const int64_t gz = z + at.at[2];
    if (t.rank > 2 && (gz < 0 || gz >= static_cast<int64_t>(t.dims[2]))) continue;
    for (int64_t y = 0; y < ny; y++) {
      const int64_t gy = y + at.at[1];
      if (t.rank > 1 && (gy < 0 || gy >= static_cast<int64_t>(t.dims[1]))) continue;
      int64_t offset = (at.at[0] + first) * size;
      if (t.rank > 1) offset += gy * static_cast<int64_t>(t.strides[0]);
      if (t.rank > 2) offset += gz * static_cast<int64_t>(t.strides[1]);
      visit(Row{reinterpret_cast<uint8_t*>(t.address) + offset,
                static_cast<uint32_t>(((z * ny + y) * t.box[0] + first) * size),
                static_cast<uint32_t>((last - first) * size)});
    }
  }
}

// The pieces of a row that stay together in the box: visit(global memory, offset in the box, bytes).
template <class Visit>
void for_pieces(const tilecc_tensor& t, const Row& r, Visit&& visit) {
  for (uint32_t o = r.offset; o < r.offset + r.bytes;) {
    const uint32_t end = (o | 15u) + 1 < r.offset + r.bytes ? (o | 15u) + 1 : r.offset + r.bytes;
    visit(r.global + (o - r.offset), t.swizzle ? o ^ ((o >> 7 & 7u) << 4) : o, end - o);
    o = end;
  }
}

void move(const tilecc_tensor& t, const Row& r, uint8_t* box, bool load) {
  for_pieces(t, r, [&](uint8_t* global, uint32_t at, uint32_t bytes) {
    memcpy(load ? box + at : global, load ? global : box + at, bytes);
  });
}

void check_shared(const tilecc_tensor& t, uint32_t addr, const char* what, Site site) {
  smem_range(my_cta(), addr, box_bytes(t), t.swizzle ? 1024 : 128, what, site);
}

}  // namespace

void tma_load(uint32_t dst, const tk::tmap_t* map, uint32_t rank, BoxAt at, uint32_t bar, const char* what, Site site) {
  preempt_point();
  CtaState* cta = my_cta();
  const tilecc_tensor t = map_of(map, rank, what, site).tensor;
  MBarrier* m = barrier_at(cta, bar, what, site);
  if (engine->races) check_init(m, true, what, site);
  const uint32_t bytes = box_bytes(t);
  count(kTma);
  count(kBulkLoadBytes, bytes);
  check_shared(t, dst, what, site);
  check_start(t, at, what, site);
  const AsyncAccess by{m->agent, static_cast<uint32_t>(m->phase) + 1};
  for_rows(t, at, [&](const Row& r) {
    global_range(r.global, r.bytes, 1, false, what, site);
    if (shadow_on) shadow_async_global(r.global, r.bytes, false, by, what, site);
  });
  if (shadow_on) {
    shadow_async_smem(cta, dst, bytes, true, by, what, site);
    for_rows(t, at, [&](const Row& r) {
      for_pieces(t, r, [&](uint8_t* global, uint32_t o, uint32_t n) { carry_written(global_span(global), smem_span(cta, dst + o), n); });
    });
  }
  memset(cta->smem + (dst - kSmemBase), 0xff, bytes);
  const auto fill = [t, at, bytes](uint8_t* to) {
    memset(to, 0, bytes);
    for_rows(t, at, [&](const Row& r) { move(t, r, to, true); });
  };
  issue_load({cta, dst, bytes, nullptr, m, site, fill});
}

void tma_store(const tk::tmap_t* map, uint32_t src, uint32_t rank, BoxAt at, const char* what, Site site) {
  preempt_point();
  const tilecc_tensor t = map_of(map, rank, what, site).tensor;
  const uint32_t bytes = box_bytes(t);
  count(kTma);
  count(kBulkStoreBytes, bytes);
  check_shared(t, src, what, site);
  check_start(t, at, what, site);
  check_store(t, at, what, site);
  WarpState* w = my_warp();
  const uint32_t group = static_cast<uint32_t>(w->groups) + 1;
  for_rows(t, at, [&](const Row& r) {
    global_range(r.global, r.bytes, 1, true, what, site);
    if (shadow_on) shadow_async_global(r.global, r.bytes, true, {store_write_agent(w->number), group}, what, site);
  });
  if (shadow_on) {
    shadow_async_smem(my_cta(), src, bytes, false, {store_read_agent(w->number), group}, what, site);
    for_rows(t, at, [&](const Row& r) {
      for_pieces(t, r, [&](uint8_t* global, uint32_t o, uint32_t n) { carry_written(smem_span(my_cta(), src + o), global_span(global), n); });
    });
  }
  const auto write = [t, at](const uint8_t* data) {
    for_rows(t, at, [&](const Row& r) { move(t, r, const_cast<uint8_t*>(data), false); });
  };
  issue_store({reinterpret_cast<uint8_t*>(t.address), src, bytes, 0, false, false, {}, site, write});
}

void tma_prefetch_map(const tk::tmap_t* map, Site site) {
  preempt_point();
  Map m;
  memcpy(&m, map, sizeof m);
  map_of(map, m.tensor.rank, "tma_prefetch_map", site);
}

}  // namespace tk_emu

extern "C" __attribute__((visibility("default"))) int tk_emu_encode_map(const tilecc_tensor* tensor, void* map,
                                                                        char* message, int bytes) {
  const char* problem = tilecc_tensor_problem(tensor);
  if (problem) {
    snprintf(message, static_cast<size_t>(bytes), "%s", problem);
    return 1;
  }
  const tk_emu::Map made{tk_emu::kMapMagic, *tensor};
  memset(map, 0, sizeof(tk::tmap_t));
  memcpy(map, &made, sizeof made);
  return 0;
}
