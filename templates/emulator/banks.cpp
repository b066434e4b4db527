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

// A source position in one warp, and what it has done so far.
struct Position {
  const char* what;
  Site site;
  uint64_t accesses = 0, wavefronts = 0, ideal = 0;
};

struct WarpAccess {
  const char* what;
  Site site;
  uint32_t bytes, mask;
  uint32_t addr[kLanes];
};

struct WarpBanks {
  std::vector<Position> positions;
  std::vector<WarpAccess> open;      // since the lanes last met, in the order of the first lane to come by
  uint32_t next[kLanes] = {};        // where each lane's next access is expected in it
};

constexpr size_t kMostOpen = 256;  // a lane that runs alone meets nobody

std::vector<WarpBanks> banks;  // by warp
std::string listing;

inline bool is_at(const char* what, Site site, const char* other_what, Site other) {
  return site.line() == other.line() && site.column() == other.column() && site.file_name() == other.file_name() &&
         what == other_what;
}

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

void evaluate(Warp* warp, const WarpAccess& a) {
  const int lanes = a.bytes <= 4 ? 32 : a.bytes == 8 ? 16 : 8;
  const uint32_t each = a.bytes <= 4 ? 1 : a.bytes / 4;
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
  std::vector<Position>& all = banks[warp->number].positions;
  auto p = std::find_if(all.begin(), all.end(), [&](const Position& q) { return is_at(q.what, q.site, a.what, a.site); });
  if (p == all.end()) p = all.insert(p, {a.what, a.site});
  p->accesses++;
  p->wavefronts += wavefronts;
  p->ideal += ideal;
}

// The lane's k-th access at a position is the k-th of the warp there: the first in which the lane has no part yet.
WarpAccess& access_at(WarpBanks& b, uint32_t lane, uint32_t bytes, const char* what, Site site) {
  for (size_t i = 0; i < b.open.size(); i++) {
    WarpAccess& a = b.open[i];
    if ((a.mask >> lane & 1) || !is_at(a.what, a.site, what, site)) continue;
    b.next[lane] = static_cast<uint32_t>(i) + 1;
    return a;
  }
  b.open.push_back({what, site, bytes, 0, {}});
  b.next[lane] = static_cast<uint32_t>(b.open.size());
  return b.open.back();
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
  const uint32_t lane = cur->lane, expected = b.next[lane];
  WarpAccess* a;
  // Lanes mostly do the same one after the other.
  if (expected < b.open.size() && !(b.open[expected].mask >> lane & 1) &&
      is_at(b.open[expected].what, b.open[expected].site, what, site)) {
    a = &b.open[expected];
    b.next[lane]++;
  } else {
    if (b.open.size() >= kMostOpen) bank_flush(cur->warp);
    a = &access_at(b, lane, bytes, what, site);
  }
  a->mask |= 1u << lane;
  a->addr[lane] = addr;
}

void bank_flush(Warp* warp) {
  WarpBanks& b = banks[warp->number];
  if (b.open.empty()) return;
  for (const WarpAccess& a : b.open) evaluate(warp, a);
  b.open.clear();
  memset(b.next, 0, sizeof b.next);
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
