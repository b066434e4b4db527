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

// Accesses of one warp at one source position since its lanes last met.
struct Pending {
  const char* what;
  Site site;
  uint32_t bytes;
  uint32_t first = 0;             // number of the front access
  uint32_t reached[kLanes] = {};  // accesses each lane has made
  std::vector<WarpAccess> open;
};

struct Totals {
  uint64_t accesses = 0, wavefronts = 0, ideal = 0;
};
using Key = std::tuple<std::string, std::string, std::string>;  // place, primitive, role

constexpr uint32_t kMostOpen = 512;  // a lane that runs alone meets nobody

std::vector<std::vector<Pending>> pending;  // by warp
std::map<Key, Totals> totals;
std::string listing;

uint32_t wavefronts_of(const uint32_t* words, int n) {
  uint32_t sorted[kLanes];
  memcpy(sorted, words, static_cast<size_t>(n) * sizeof *words);
  std::sort(sorted, sorted + n);
  const uint32_t* end = std::unique(sorted, sorted + n);
  uint32_t in_bank[32] = {}, most = 0;
  for (const uint32_t* w = sorted; w != end; w++) most = std::max(most, ++in_bank[*w & 31]);
  return most;
}

std::string role_of(const Warp* warp) {
  auto it = warp->watch.known ? engine->role_names.find(warp->watch.role) : engine->role_names.end();
  return it == engine->role_names.end() ? "-" : it->second;
}

void evaluate(Warp* warp, const Pending& p, const WarpAccess& a) {
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
  Totals& t = totals[{place(p.site), p.what, role_of(warp)}];
  t.accesses++;
  t.wavefronts += wavefronts;
  t.ideal += ideal;
}

Pending& pending_at(uint32_t bytes, const char* what, Site site) {
  std::vector<Pending>& all = pending[cur->warp->number];
  for (Pending& p : all)
    if (p.site.line() == site.line() && p.site.column() == site.column() && p.site.file_name() == site.file_name() &&
        p.what == what)
      return p;
  all.push_back({what, site, bytes, 0, {}, {}});
  return all.back();
}

}  // namespace

void start_banks() {
  pending.assign(engine->warps.size(), {});
  totals.clear();
  listing.clear();
}

void bank_access(uint32_t addr, uint32_t bytes, const char* what, Site site) {
  Pending& p = pending_at(bytes, what, site);
  const uint32_t lane = cur->lane;
  const uint32_t number = std::max(p.reached[lane], p.first);
  p.reached[lane] = number + 1;
  while (p.first + p.open.size() <= number) p.open.emplace_back();
  WarpAccess& a = p.open[number - p.first];
  a.mask |= 1u << lane;
  a.addr[lane] = addr;
  size_t done = 0;
  while (done < p.open.size() && (p.open[done].mask == 0xffffffffu || p.open.size() - done > kMostOpen))
    evaluate(cur->warp, p, p.open[done++]);
  p.open.erase(p.open.begin(), p.open.begin() + static_cast<ptrdiff_t>(done));
  p.first += static_cast<uint32_t>(done);
}

void bank_flush(Warp* warp) {
  std::vector<Pending>& all = pending[warp->number];
  for (const Pending& p : all)
    for (const WarpAccess& a : p.open) evaluate(warp, p, a);
  all.clear();
}

void finish_banks() {
  for (WarpState& w : engine->warps) bank_flush(&w);
  pending.clear();
  for (const auto& [key, t] : totals) {
    const auto& [where, what, role] = key;
    listing += text("%s\t%s\t%s\t%llu\t%llu\t%llu\n", where.c_str(), what.c_str(), role.c_str(),
                    static_cast<unsigned long long>(t.accesses), static_cast<unsigned long long>(t.wavefronts),
                    static_cast<unsigned long long>(t.ideal));
  }
}

extern "C" __attribute__((visibility("default"))) const char* tk_emu_bank_sites(void) { return listing.c_str(); }

}  // namespace tk_emu
