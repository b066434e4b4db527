// Shadow memory: for every 4 bytes the accesses that a later one may conflict with.
#pragma once
#include <stdint.h>

#include <memory>
#include <vector>

namespace tk_emu {

struct Access {
  uint32_t who;             // warp number, or agent number of an async access
  uint32_t time;            // epoch of the warp, or time of the agent
  uint32_t release;         // lane 0's release count, for accesses of lane 0 alone
  uint32_t lanes;           // mask, for accesses of a warp
  uint32_t site : 24;       // index of (what, site)
  uint32_t bytes : 4;       // which bytes of the word
  uint32_t write : 1;
  uint32_t async : 1;
  uint32_t reduce : 1;      // atomic per element: any order among themselves
};

struct Cell {
  Access slot[2];
  uint32_t more = 0;        // 1 + index of a list of further accesses
  uint8_t used = 0;
  uint8_t written = 0;      // bytes that were ever written
};

// One word per cell, allocated page by page on first touch: most of a KV cache is never touched.
class ShadowSpace {
 public:
  static constexpr uint64_t kPageCells = 512;
  void resize(uint64_t bytes, bool initialised) {
    pages_.resize((bytes / 4 + kPageCells) / kPageCells);
    initialised_ = initialised;
  }
  Cell* at(uint64_t word) {
    std::unique_ptr<Cell[]>& page = pages_[word / kPageCells];
    if (!page) {
      page.reset(new Cell[kPageCells]);
      if (initialised_)
        for (uint64_t i = 0; i < kPageCells; i++) page[i].written = 15;
    }
    return &page[word % kPageCells];
  }
  bool empty() const { return pages_.empty(); }

 private:
  std::vector<std::unique_ptr<Cell[]>> pages_;
  bool initialised_ = false;
};

}  // namespace tk_emu
