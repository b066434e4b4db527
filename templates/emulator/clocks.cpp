// Shared vector clocks: allocation, raising, joining.
#include "clocks.h"

namespace tk_emu {

namespace {

typedef uint32_t Block __attribute__((vector_size(32)));
constexpr uint32_t kStep = 16;  // elements a chunk grows by

uint32_t ctas = 0;
std::vector<Chunk*> free_chunks[(1u << kCtaShift) / kStep + 1];
std::vector<ClockTable*> free_tables;

Chunk* new_chunk(uint32_t size) {
  std::vector<Chunk*>& pool = free_chunks[size / kStep];
  Chunk* c;
  if (pool.empty()) {
    // The elements start on a 32-byte boundary.
    char* raw = static_cast<char*>(aligned_alloc(32, 32 + size * 4));
    c = reinterpret_cast<Chunk*>(raw + 32 - sizeof(Chunk));
  } else {
    c = pool.back();
    pool.pop_back();
  }
  c->refs = 1;
  c->size = size;
  return c;
}

inline void drop_chunk(Chunk* c) {
  if (c && !--c->refs) free_chunks[c->size / kStep].push_back(c);
}

ClockTable* new_table() {
  ClockTable* t;
  if (free_tables.empty()) {
    t = static_cast<ClockTable*>(malloc(sizeof(Chunk*) * (ctas + 1)));
  } else {
    t = free_tables.back();
    free_tables.pop_back();
  }
  t->refs = 1;
  return t;
}

Chunk* enlarged(const Chunk* from, uint32_t size) {
  Chunk* c = new_chunk(size);
  memcpy(c->at(), from->at(), from->size * 4);
  memset(c->at() + from->size, 0, (size - from->size) * 4);
  return c;
}

inline const Block* blocks(const Chunk* c) { return reinterpret_cast<const Block*>(c->at()); }
inline bool any(const Block& b) {
  const uint64_t* q = reinterpret_cast<const uint64_t*>(&b);
  return (q[0] | q[1] | q[2] | q[3]) != 0;
}

// Bit 0: a has a larger element; bit 1: b has.
int compare(const Chunk* a, const Chunk* b) {
  const uint32_t common = (a->size < b->size ? a->size : b->size) / 8;
  Block more_a{}, more_b{};
  for (uint32_t i = 0; i < common; i++) {
    more_a |= reinterpret_cast<Block>(blocks(a)[i] > blocks(b)[i]);
    more_b |= reinterpret_cast<Block>(blocks(b)[i] > blocks(a)[i]);
  }
  for (uint32_t i = common; i < a->size / 8; i++) more_a |= blocks(a)[i];
  for (uint32_t i = common; i < b->size / 8; i++) more_b |= blocks(b)[i];
  return (any(more_a) ? 1 : 0) | (any(more_b) ? 2 : 0);
}

// Element-wise maximum; `a` loses one reference.
Chunk* merged(Chunk* a, const Chunk* b) {
  Chunk* to = a;
  if (a->refs > 1 || a->size < b->size) {
    to = enlarged(a, a->size > b->size ? a->size : b->size);
    drop_chunk(a);
  }
  Block* t = reinterpret_cast<Block*>(to->at());
  for (uint32_t i = 0; i < b->size / 8; i++) t[i] = blocks(b)[i] > t[i] ? blocks(b)[i] : t[i];
  return to;
}

}  // namespace

void Clock::set_ctas(uint32_t n) {
  free_pools();
  ctas = n;
}

void Clock::free_pools() {
  for (ClockTable* t : free_tables) free(t);
  free_tables.clear();
  for (std::vector<Chunk*>& pool : free_chunks) {
    for (Chunk* c : pool) free(reinterpret_cast<char*>(c) + sizeof(Chunk) - 32);
    pool.clear();
  }
}

void Clock::drop() {
  if (--table_->refs) return;
  for (uint32_t i = 0; i < ctas; i++) drop_chunk(table_->at()[i]);
  free_tables.push_back(table_);
}

void Clock::unshare() {
  if (table_ && table_->refs == 1) return;
  ClockTable* t = new_table();
  if (table_) {
    memcpy(t->at(), table_->at(), sizeof(Chunk*) * ctas);
    for (uint32_t i = 0; i < ctas; i++)
      if (t->at()[i]) t->at()[i]->refs++;
    table_->refs--;
  } else {
    memset(t->at(), 0, sizeof(Chunk*) * ctas);
  }
  table_ = t;
}

void Clock::raise(uint32_t agent, uint32_t to) {
  if (get(agent) >= to) return;
  unshare();
  Chunk*& c = table_->at()[agent >> kCtaShift];
  const uint32_t i = agent & ((1u << kCtaShift) - 1u);
  const uint32_t size = (i / kStep + 1) * kStep;
  if (!c) {
    c = new_chunk(size);
    memset(c->at(), 0, size * 4);
  } else if (c->refs > 1 || c->size < size) {
    Chunk* own = enlarged(c, c->size > size ? c->size : size);
    drop_chunk(c);
    c = own;
  }
  c->at()[i] = to;
}

void Clock::join_table(const Clock& o) {
  if (!table_) {
    table_ = o.table_;
    table_->refs++;
    return;
  }
  Chunk* const* theirs = o.table_->at();
  for (uint32_t i = 0; i < ctas; i++) {
    Chunk* b = theirs[i];
    Chunk* a = table_->at()[i];
    if (a == b || !b) continue;
    const int more = a ? compare(a, b) : 2;
    // Equal chunks become one, unless that would copy the table.
    if (!(more & 2) && ((more & 1) || table_->refs > 1)) continue;
    unshare();
    Chunk*& mine = table_->at()[i];
    if (more & 1) {
      mine = merged(mine, b);
    } else {
      b->refs++;
      drop_chunk(mine);
      mine = b;
    }
  }
}

}  // namespace tk_emu
