"""TC09xx: what the emulator finds in a kernel."""

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
        title="bulk store not waited for",
        explanation="""
A thread returned while a bulk store of its own was not known to be complete. It must be committed and then
waited for with bulk_wait<0>, not only bulk_wait_read.
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
}
