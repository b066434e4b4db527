// Shared-memory bank conflicts, counted per warp access and source position.
//
// Model: 32 banks of 4 bytes. A warp access is served in phases of 128 bytes at most: all 32 lanes of an access of up to 4
// bytes each, two halves of an 8-byte one, four quarters of a 16-byte one (and of ldmatrix, whose lanes name rows of 16
// bytes). A phase takes as many wavefronts as the bank with the most different words has of them; lanes that name the
// same word share it. Hardware may merge the phases of accesses whose lanes overlap; the count does not.
//
// Lanes run one after the other, so the k-th access of each lane at one source position makes the k-th access of the
// warp. At a collective the lanes meet, and what is not complete by then was an access of some lanes only.
#include <string.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "engine.h"

namespace tk_emu {

namespace {

struct WarpAccess {
  uint32_t mask = 0;
  uint32_t addr[kLanes];
};

// A source position in one warp: what it has done so far, and its accesses since the lanes last met.
struct Position {
  const char* what;
  Site site;
  uint32_t bytes;
  uint64_t accesses = 0, wavefronts = 0, ideal = 0;
  uint32_t meeting = 0;           // of the warp, when the rest was last valid
  uint32_t first = 0;             // number of the first access in `open`
  uint32_t head = 0;              // accesses of `open` that are counted
  uint32_t reached[kLanes] = {};  // accesses each lane has made
  std::vector<WarpAccess> open;
};

struct WarpBanks {
  std::vector<Position> positions;
  std::vector<uint32_t> active;  // positions with accesses since the lanes last met
  uint32_t meeting = 1;
  uint32_t last = 0;             // where the latest access was: the next one is there or just behind
};

constexpr uint32_t kMostOpen = 512;  // a lane that runs alone meets nobody

std::vector<WarpBanks> banks;  // by warp
std::string listing;

uint32_t wavefronts_of(const uint32_t* words, int n) {
  uint32_t word_of[32], used = 0;
  bool conflict = false;
  for (int i = 0; i < n; i++) {
    const uint32_t bank = words[i] & 31;
    conflict |= (used >> bank & 1) && word_of[bank] != words[i];
    used |= 1u << bank;
    word_of[bank] = words[i];
  }
  if (!conflict) return 1;
  uint32_t sorted[kLanes], in_bank[32] = {}, most = 0;
  memcpy(sorted, words, static_cast<size_t>(n) * sizeof *words);
  std::sort(sorted, sorted + n);
  const uint32_t* end = std::unique(sorted, sorted + n);
  for (const uint32_t* w = sorted; w != end; w++) most = std::max(most, ++in_bank[*w & 31]);
  return most;
}

void evaluate(Warp* warp, Position& p, const WarpAccess& a) {
  const int lanes = p.bytes <= 4 ? 32 : p.bytes == 8 ? 16 : 8;
  const uint32_t each = p.bytes <= 4 ? 1 : p.bytes / 4;
  uint32_t wavefronts = 0, ideal = 0;
  for (int begin = 0; begin < kLanes; begin += lanes) {
    uint32_t words[kLanes];
    int n = 0;
    for (int lane = begin; lane < begin + lanes; lane++)
      if (a.mask >> lane & 1)
        for (uint32_t i = 0; i < each; i++) words[n++] = (a.addr[lane] - kSmemBase) / 4 + i;
    if (!n) continue;
    wavefronts += wavefronts_of(words, n);
    ideal++;
  }
  warp->counts[kBankConflicts] += wavefronts - ideal;
  warp->counts[kSmemWavefronts] += wavefronts;
  p.accesses++;
  p.wavefronts += wavefronts;
  p.ideal += ideal;
}

inline bool is_at(const Position& p, const char* what, Site site) {
  return p.site.line() == site.line() && p.site.column() == site.column() && p.site.file_name() == site.file_name() &&
         p.what == what;
}

Position& position_at(WarpBanks& b, uint32_t bytes, const char* what, Site site) {
  const uint32_t n = static_cast<uint32_t>(b.positions.size());
  for (uint32_t i = 0, at = b.last; i < n; i++, at = at + 1 < n ? at + 1 : 0)
    if (is_at(b.positions[at], what, site)) {
      b.last = at;
      return b.positions[at];
    }
  b.last = n;
  b.positions.push_back({what, site, bytes});
  return b.positions.back();
}

std::string role_of(const Warp& warp) {
  auto it = warp.watch.known ? engine->role_names.find(warp.watch.role) : engine->role_names.end();
  return it == engine->role_names.end() ? "-" : it->second;
}

}  // namespace

void start_banks() {
  banks.assign(engine->warps.size(), {});
  listing.clear();
}

void bank_access(uint32_t addr, uint32_t bytes, const char* what, Site site) {
  WarpBanks& b = banks[cur->warp->number];
  Position& p = position_at(b, bytes, what, site);
  if (p.meeting != b.meeting) {
    p.meeting = b.meeting;
    p.first = p.head = 0;
    memset(p.reached, 0, sizeof p.reached);
    p.open.clear();
    b.active.push_back(b.last);
  }
  const uint32_t lane = cur->lane;
  const uint32_t number = std::max(p.reached[lane], p.first + p.head);
  p.reached[lane] = number + 1;
  while (p.first + p.open.size() <= number) p.open.emplace_back();
  WarpAccess& a = p.open[number - p.first];
  a.mask |= 1u << lane;
  a.addr[lane] = addr;
  while (p.head < p.open.size() && (p.open[p.head].mask == 0xffffffffu || p.open.size() - p.head > kMostOpen))
    evaluate(cur->warp, p, p.open[p.head++]);
  if (p.head == p.open.size() || p.head > kMostOpen) {
    p.open.erase(p.open.begin(), p.open.begin() + p.head);
    p.first += p.head;
    p.head = 0;
  }
}

void bank_flush(Warp* warp) {
  WarpBanks& b = banks[warp->number];
  for (const uint32_t i : b.active) {
    Position& p = b.positions[i];
    while (p.head < p.open.size()) evaluate(warp, p, p.open[p.head++]);
  }
  b.active.clear();
  b.meeting++;
}

void finish_banks() {
  using Key = std::tuple<std::string, std::string, std::string>;  // place, primitive, role
  std::map<Key, Position*> all;
  for (WarpState& w : engine->warps) {
    bank_flush(&w);
    for (Position& p : banks[w.number].positions) {
      auto [it, fresh] = all.try_emplace({place(p.site), p.what, role_of(w)}, &p);
      if (fresh) continue;
      it->second->accesses += p.accesses;
      it->second->wavefronts += p.wavefronts;
      it->second->ideal += p.ideal;
    }
  }
  for (const auto& [key, p] : all) {
    const auto& [where, what, role] = key;
    listing += text("%s\t%s\t%s\t%llu\t%llu\t%llu\n", where.c_str(), what.c_str(), role.c_str(),
                    static_cast<unsigned long long>(p->accesses), static_cast<unsigned long long>(p->wavefronts),
                    static_cast<unsigned long long>(p->ideal));
  }
  banks.clear();
}

extern "C" __attribute__((visibility("default"))) const char* tk_emu_bank_sites(void) { return listing.c_str(); }

}  // namespace tk_emu
