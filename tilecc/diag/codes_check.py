"""TC08xx: what the static checker finds in a program."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0801": Entry(
        title="deadlock",
        explanation="""
Some warps wait for phases of mbarriers or for counters that nothing can complete any more. The notes
list the warps with what they wait for; the op named first is the earliest that does not get on. All
waits of a program are monotone, so the same warps block under every schedule.
""",
        wrong="a row waits for instance 3 of a counter that has 2 instances before it",
        right="wait for an instance that an earlier op signals",
    ),
    "TC0802": Entry(
        title="race between two ops",
        explanation="""
Two ops touch the same buffer, or the same slot of a ring, one of them writes, and no chain of hand-offs
orders the two. Under some schedule the reader sees the old value, or a mixture. The first place is the
later op, the second the one it may overtake.
""",
        wrong="attention reads `queries` without waiting for the counter of qkv",
        right="derive the waits with the pass `edges`, which compares the boxes that tiles read and write",
    ),
    "TC0803": Entry(
        title="arrival a lap ahead",
        explanation="""
A counter counts arrivals and a parity tells two phases apart: both go wrong when a CTA or a warp can be
a whole lap ahead of another, because its early arrival stands in for one that is missing, or its parity
means the next phase but one.
""",
        wrong="a CTA without tasks signals without waiting for the inputs of its op",
        right="a CTA without tasks waits for the op's inputs too",
    ),
    "TC0804": Entry(
        title="arrival count of an mbarrier",
        explanation="""
A phase of an mbarrier completes after as many arrivals as it was initialised with. Here that number
differs from the arrivals that the warps of its roles make for one slot.
""",
        wrong="empty barriers initialised with 3 for 4 consumer warps",
        right="one arrival per consumer warp",
    ),
    "TC0805": Entry(
        title="two sides of a ring disagree",
        explanation="""
A producer and a consumer must go through a ring in the same pattern of loops, or for some number of
tasks or chunks one of them waits for a slot that the other does not fill or free. A slot is acquired,
filled and committed, and taken, used and released, in this order.
""",
        wrong="the loader fills a stage per chunk, the consumers take one per task",
        right="both loop over tasks and chunks",
    ),
    "TC0806": Entry(
        title="counter or wait that means nothing",
        explanation="""
A row of the op table waits for a counter that no op signals, or for an instance that has not started
when the row runs; or two ops signal one counter, so that its value no longer says which of them is done.
""",
        wrong="the first op of a step waits for instance 1 of a later op of the same step",
        right="wait for its last instance of the step before (ordinal 0)",
    ),
    "TC0807": Entry(
        title="script that does not parse as a protocol",
        explanation="""
The protocol of an op names a role, a ring or a buffer that the program does not have, or a verb that the
checker does not know.
""",
        wrong="`take weigths`",
        right="`take weights`",
    ),
    "TC0808": Entry(
        title="budget of a CTA exceeded",
        explanation="""
Threads, registers or shared memory of one CTA exceed what the target has, so the kernel could not be
launched, or not with one CTA on every SM at once, which the hand-offs between CTAs need.
""",
        wrong="rings of 300 KiB",
        right="fewer or smaller stages, such that the rings fit 227 KiB",
    ),
}
