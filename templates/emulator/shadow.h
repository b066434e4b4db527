// Shadow memory: for every 16 bytes the accesses that a later one may conflict with.
#pragma once
#include <stdint.h>

#include <memory>
#include <vector>

namespace tk_emu {

struct Access {
  uint32_t agent;    // of the warp's lanes, or of the asynchronous access
  uint32_t time;     // epoch of the warp, or time of the agent
  uint32_t release;  // of lane 0: its releases; of another lane: its fences in this epoch
  uint32_t lanes;    // mask, for accesses of a warp
  uint16_t bytes;    // which bytes of the granule
  uint16_t site;     // index of (what, site)
  bool write : 1;
  bool async : 1;
  bool atomic : 1;
  bool striped : 1;  // lane after lane, byte range after byte range; otherwise every lane touched every byte
  bool constant : 1; // a load through the read-only path, of memory that nobody may write during the launch
  uint8_t scope : 2; // of an atomic access
};

struct Granule {
  Access slot[2];
  uint32_t more = 0;     // 1 + index of a list of further accesses
  uint16_t written = 0;  // bytes that were ever written
  uint8_t used = 0;
};

// Allocated page by page on first touch: most of a KV cache is never touched.
class ShadowSpace {
 public:
  static constexpr uint64_t kPage = 256;
  void resize(uint64_t bytes, bool initialised) {
    pages_.resize((bytes / 16 + kPage) / kPage);
    initialised_ = initialised;
  }
  Granule* at(uint64_t granule) {
    std::unique_ptr<Granule[]>& page = pages_[granule / kPage];
    if (!page) {
      page.reset(new Granule[kPage]);
      if (initialised_)
        for (uint64_t i = 0; i < kPage; i++) page[i].written = 0xffff;
    }
    return &page[granule % kPage];
  }
  bool empty() const { return pages_.empty(); }
  uint64_t bytes() const {
    uint64_t n = 0;
    for (const std::unique_ptr<Granule[]>& page : pages_) n += page ? kPage * sizeof(Granule) : 0;
    return n;
  }

 private:
  std::vector<std::unique_ptr<Granule[]>> pages_;
  bool initialised_ = false;
};

}  // namespace tk_emu
