"""TC090x, TC091x, TC094x: what the emulator finds in a kernel. TC092x, TC093x: rules for emitted text."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0901": Entry(
        title="deadlock",
        explanation="""
Threads wait and nothing can wake them: no thread can run and no copy is in flight. The report names every
waiter with its CTA, warp, role and lanes, and the object: an mbarrier with its phase, pending arrivals and
tx-count, or a counter with the value it holds. Look for the arrival, the signal or the bytes that never come.
""",
        wrong="mbar_arrive_expect_tx(bar, 48); bulk_g2s(dst, src, 32, bar);",
        right="mbar_arrive_expect_tx(bar, 32); bulk_g2s(dst, src, 32, bar);",
    ),
    "TC0902": Entry(
        title="launch did not end",
        explanation="""
The launch was given a bound of thread switches and passed it. Threads still run, so this is no deadlock: a
loop polls for something that never comes, or the bound is too small for the problem.
""",
        wrong="while (ld_acquire(flag) == 0) nanosleep(100);",
        right="wait_ge(flag, 1, watch);",
    ),
    "TC0903": Entry(
        title="shared memory accessed outside its region",
        explanation="""
A kernel declares the parts of its shared memory by name. An access must lie inside one of them; it may not
touch an mbarrier, nor cross from one region into the next, even if that is shared memory too.
""",
        wrong="lds128(stage + kStageBytes - 8)",
        right="lds128(stage + kStageBytes - 16)",
    ),
    "TC0904": Entry(
        title="global memory accessed outside the buffers",
        explanation="""
The runtime registers every buffer, and every region of the workspace, with its size. The access is outside
of all of them, or leaves the one that it starts in.
""",
        wrong="ldg32(p.in + 256)      // in holds 256 bytes",
        right="ldg32(p.in + 252)",
    ),
    "TC0905": Entry(
        title="misaligned access",
        explanation="""
An access of n bytes needs an address that is a multiple of n; bulk copies need multiples of 16 for addresses
and size. A GPU traps, or reads something else.
""",
        wrong="lds128(data + 8)",
        right="lds128(data + 16)",
    ),
    "TC0906": Entry(
        title="warp collective in diverged code",
        explanation="""
All 32 lanes must call mma, shfl, syncwarp, ballot and barriers at the same place of the source. Some lanes
came from another place, wait elsewhere, or have returned: undefined on a GPU.
""",
        wrong="if (lane() < 16) syncwarp();",
        right="syncwarp();",
    ),
    "TC0907": Entry(
        title="mbarrier misused",
        explanation="""
The mbarrier was not initialised, or twice, or got more arrivals in a phase than its count, or a tx-count
beyond its 20 bits.
""",
        wrong="mbar_init(bar, 1); mbar_arrive(bar); mbar_arrive(bar);   // in one phase",
        right="mbar_init(bar, 2); mbar_arrive(bar); mbar_arrive(bar);",
    ),
    "TC0908": Entry(
        title="named barrier misused",
        explanation="""
Ids are 0 to 15 and thread counts multiples of 32. All warps that meet at a barrier must give the same count,
and a warp arrives once per round.
""",
        wrong="bar_sync(1, 48)",
        right="bar_sync(1, 64)",
    ),
    "TC0909": Entry(
        title="asynchronous copy not waited for",
        explanation="""
A thread returned while a bulk store of its own was not known to be complete: it must be committed and then
waited for with bulk_wait<0>, not only bulk_wait_read. Or a CTA ended with a load that nobody waited for on
its mbarrier: it may land in the shared memory of the next CTA.
""",
        wrong="bulk_s2g(dst, src, 1024); bulk_commit();",
        right="bulk_s2g(dst, src, 1024); bulk_commit(); bulk_wait<0>();",
    ),
    "TC0910": Entry(
        title="write to read-only memory",
        explanation="""
The buffer is registered as read-only for the launch: weights, tables, step descriptions. A kernel that
writes to it would break the loads that go through the non-coherent path.
""",
        wrong="stg32(p.image + offset, 0)",
        right="stg32(p.workspace + offset, 0)",
    ),
    "TC0911": Entry(
        title="ambiguous parity of an mbarrier",
        explanation="""
A wait names the parity of a phase, so it cannot tell phase k from phase k + 2. Nothing in the program keeps
the barrier from completing the next phase before this lane has passed its wait; in another schedule it would
miss the phase and wait for ever.
""",
        wrong="for (...) { mbar_wait(full, phase, w); if (elect()) issue(); }      // by all lanes",
        right="if (elect()) for (...) { mbar_wait(full, phase, w); issue(); }",
    ),
    "TC0912": Entry(
        title="data race",
        explanation="""
Two accesses to the same bytes, at least one a write, and no chain of releases and acquires that orders them.
The report gives both places. That this run read the right value means nothing: another schedule need not.
""",
        wrong="mbar_arrive(empty); use(lds128(stage));",
        right="use(lds128(stage)); syncwarp(); mbar_arrive(empty);",
    ),
    "TC0913": Entry(
        title="uninitialised memory read",
        explanation="""
The kernel reads bytes that nothing has written: shared memory is undefined when a CTA starts, and so is
scratch memory when a launch does.
""",
        wrong="lds32(route) before the copy into it has been waited for",
        right="mbar_wait(full, phase, w); lds32(route)",
    ),
    "TC0914": Entry(
        title="missing proxy fence",
        explanation="""
Bulk copies read memory through the async proxy. Ordinary writes are visible there only after
fence_proxy_async, executed by the writing lanes before the synchronisation that leads to the copy.
""",
        wrong="sts32(out, v); syncwarp(); bulk_s2g(dst, out, 1024);",
        right="sts32(out, v); fence_proxy_async(); syncwarp(); bulk_s2g(dst, out, 1024);",
    ),
    "TC0915": Entry(
        title="counter and target too far apart",
        explanation="""
Counters are epochs that wrap: a wait compares (int)(counter - target) with zero, which is right across the
wrap while the two stay within 2^30 of each other. Further apart the comparison is about to turn over: a
target that was not computed modulo 2^32, a base of another counter, or a counter not reset with it.
""",
        wrong="wait_ge(counter, epoch < 0xffffffff ? epoch : 1, w);    // counter at 0x80000000",
        right="wait_ge(counter, base + epoch, w);                      // unsigned arithmetic, same base",
    ),
    "TC0916": Entry(
        title="launch refused by the emulator",
        explanation="""
The kernel library and its caller disagree about the launch: another emulator ABI, another number of threads
or size of parameters than the kernel was compiled with, or sizes no GPU has.
""",
        wrong="a launch of 128 threads of a kernel declared with 64",
        right="a launch of 64 threads",
    ),
    "TC0917": Entry(
        title="emulated stack used up",
        explanation="""
Every emulated thread has a stack of 64 KiB. A kernel whose local arrays need more would need local memory on
a GPU too, which is slow: keep such arrays in shared memory.
""",
        wrong="float scratch[32768];",
        right="float scratch[16];",
    ),
    "TC0918": Entry(
        title="synchronisation at too narrow a scope",
        explanation="""
Two accesses would be ordered, were it not for the scope: a release or acquire at .cta scope reaches only
threads of the same CTA, one at .gpu scope only the same rank. Peers of another rank need .sys on both sides.
Two atomic accesses also conflict when the scope of either does not reach the other.
""",
        wrong="red_release<Scope::kGpu>(peer_counter, 1);",
        right="red_release<Scope::kSys>(peer_counter, 1);",
    ),
    "TC0919": Entry(
        title="data-as-flag word misused",
        explanation="""
A word that carries its own flag must hold poison when a push comes and before anyone polls it: it is filled
with poison before the first push, poisoned again after each datum was taken, and never pushed the poison
itself. A poll that takes anything else takes old data or none.
""",
        wrong="x = poll_word<Scope::kSys>(p, kFlagPoison, w);      // and next step the same word again",
        right="x = poll_word<Scope::kSys>(p, kFlagPoison, w); poison_word(p, kFlagPoison);",
    ),
    "TC0921": Entry(
        title="raw instruction or dereference in emitted text (rule 1)",
        explanation="""
Everything that touches memory, barriers, tensor cores or other lanes goes through the primitive header: only
there does the emulator see it. Assembly, CUDA intrinsics, atomics and raw dereferences of addresses in
shared or global memory are refused; arrays in registers are free.
""",
        wrong="const uint8_t x = c.p.image[3];",
        right="const tk::u32 x = tk::ldg_u8(c.p.image + 3);",
    ),
    "TC0922": Entry(
        title="wait by hand in emitted text (rule 2)",
        explanation="""
A wait is a blocking primitive: then the emulator knows who waits for what, and a watchdog bounds it on a GPU.
Loops that poll memory, `volatile`, and anything that reads a clock are refused.
""",
        wrong="while (tk::ld_acquire(flag) == 0) {}",
        right="tk::wait_ge(flag, 1, c.watch);",
    ),
    "TC0923": Entry(
        title="elected lane other than lane 0 in emitted text (rule 3)",
        explanation="""
Primitives of one lane act in lane 0. A branch that leaves lane 0 out makes them do nothing; work of several
lanes must be joined by syncwarp() before lane 0 publishes it.
""",
        wrong="if (lane() == 31) tk::mbar_arrive(bar);",
        right="tk::syncwarp(); tk::mbar_arrive(bar);",
    ),
    "TC0924": Entry(
        title="warp collective in diverged code in emitted text (rule 4)",
        explanation="""
All 32 lanes call mma, shfl, syncwarp, barriers and their like at one place of the source. The call stands
under a condition that depends on the lane.
""",
        wrong="if (c.lane < 16) v = tk::shfl_xor(v, 1);",
        right="const float w = tk::shfl_xor(v, 1); if (c.lane < 16) v = w;",
    ),
    "TC0925": Entry(
        title="mbarrier wait by some lanes or for a fixed phase in emitted text (rule 5)",
        explanation="""
Either all lanes of a warp wait on an mbarrier or lane 0 alone does, and the parity comes from the counter of
the ring: anything else loses track of the phase.
""",
        wrong="for (...) tk::mbar_wait(bar, 0, c.watch);",
        right="for (...) { tk::mbar_wait(bar, ring.phase, c.watch); ring.advance<N>(); }",
    ),
    "TC0926": Entry(
        title="proxy fence missing in emitted text (rule 6)",
        explanation="""
Bulk copies and wgmma read through the async proxy. Between ordinary writes and such a read, and between an
acquire and an asynchronous read of what it acquired, stands fence_proxy_async().
""",
        wrong="tk::sts32(out, v); tk::syncwarp(); tk::bulk_s2g(dst, out, 128);",
        right="tk::sts32(out, v); tk::fence_proxy_async(); tk::syncwarp(); tk::bulk_s2g(dst, out, 128);",
    ),
    "TC0927": Entry(
        title="bulk store not complete before its release in emitted text (rule 7)",
        explanation="""
A bulk store is complete for others only after bulk_commit and bulk_wait<0>; bulk_wait_read says only that its
source may be overwritten. The release of a counter comes after that.
""",
        wrong="tk::bulk_wait_read<0>(); tk::red_release(counter, 1);",
        right="tk::bulk_wait<0>(); tk::red_release(counter, 1);",
    ),
    "TC0928": Entry(
        title="hidden state in emitted text (rule 8)",
        explanation="""
A kernel keeps its state in registers, locals, declared regions of shared memory and the workspace. Static and
global variables and `__shared__` declarations would be shared between emulated CTAs and outlive a launch.
""",
        wrong="static u32 calls = 0;",
        right="u32 calls = 0;",
    ),
    "TC0929": Entry(
        title="wgmma accumulators touched before the wait in emitted text (rule 9)",
        explanation="""
wgmma writes its accumulators some time between issue and wait. They are a local array, named directly, and
nobody reads or moves them before wgmma_wait.
""",
        wrong="tk::wgmma_bf16(acc, a, b); y = acc[0]; tk::wgmma_wait<0>();",
        right="tk::wgmma_bf16(acc, a, b); tk::wgmma_wait<0>(); y = acc[0];",
    ),
    "TC0930": Entry(
        title="text that only nvcc compiles (rule 10)",
        explanation="""
The same text is compiled by nvcc and by g++: no launches, cooperative groups, `__constant__` memory, CUDA
headers or qualifiers, and no code under `#ifdef __CUDACC__`, which the emulator would never run.
""",
        wrong="__device__ u32 twice(u32 x) { return 2 * x; }",
        right="TK_FN u32 twice(u32 x) { return 2 * x; }",
    ),
    "TC0931": Entry(
        title="flushing form where weights are decoded",
        explanation="""
Decoded MXFP4 and FP8 weights and their scales may be subnormal on the way. Forms that flush subnormal numbers
to zero (.ftz, and the approximations ex2, lg2, rcp, rsqrt) would change weights silently.
""",
        wrong="TK_FN float decode_mxfp4(u32 s) { return tk::exp2_(s - 127.f); }",
        right="TK_FN u32 decode_mxfp4(u32 s) { return s << 7; }",
    ),
    "TC0940": Entry(
        title="tensor copy without a fitting tensor map",
        explanation="""
A tensor copy reads its shape from a tensor map that the host encoded: tk_emu_encode_map for the emulator,
tilecc_encode_tensor_map for CUDA. The 128 bytes given are no map, or the map has another rank than the copy.
""",
        wrong="tma_load_1d(dst, &map_of_rank_2, x, bar);",
        right="tma_load_2d(dst, &map_of_rank_2, x, y, bar);",
    ),
    "TC0941": Entry(
        title="misused address of another CTA",
        explanation="""
Shared memory of another CTA of the cluster is reached through mapa, for ranks below cluster_size(), and only
while that CTA is still in the kernel. A bulk copy completes on an mbarrier of the CTA that it writes to.
""",
        wrong="lds32_cluster(mapa(data, 1)); return;",
        right="lds32_cluster(mapa(data, 1)); cluster_sync(); return;",
    ),
    "TC0942": Entry(
        title="misused wgmma",
        explanation="""
All four warps of a warpgroup issue the same sequence. wgmma_fence() comes before the first wgmma that uses
its registers, the accumulators are left alone until wgmma_wait, which must come before the kernel ends, and
descriptors come from wgmma_desc or wgmma_desc_128b with the alignment of their swizzle.
""",
        wrong="wgmma_bf16<16>(d, a, b); wgmma_commit(); use(d);",
        right="wgmma_fence(); wgmma_bf16<16>(d, a, b); wgmma_commit(); wgmma_wait<0>(); use(d);",
    ),
    "TC0943": Entry(
        title="read-only load of memory that the launch writes",
        explanation="""
ldg_nc and ld_uniform go through a path that is not coherent, and the compiler may move them: they are for
memory that nobody writes during the launch. No barrier or counter makes such a load see a write of the same
launch.
""",
        wrong="wait_ge(counter, target, watch); syncwarp(); v = ldg_nc32(p.workspace + offset);",
        right="wait_ge(counter, target, watch); syncwarp(); v = ldg32(p.workspace + offset);",
    ),
    "TC0944": Entry(
        title="setmaxnreg differs within a warpgroup",
        explanation="""
setmaxnreg moves registers between warpgroups: all four warps of a warpgroup must execute the same one. Warps
0 to 3 form the first warpgroup, 4 to 7 the second; roles with different budgets begin at a multiple of 4.
""",
        wrong="if (warp() == 0) setmaxnreg_dec<40>();",
        right="if (warp() < 4) setmaxnreg_dec<40>();",
    ),
}
