"""Cases of ``kernels/cluster.cu``: shared memory and mbarriers of other CTAs of a cluster of four."""

from __future__ import annotations

import numpy as np

from tests.conformance.case import Case, Launch, exact, raw, words

SIZE, WORDS = 4, 256


def cluster_launch(op: int) -> Launch:
    clusters = 2
    data = words(500 + op, clusters, SIZE, WORDS)
    rank = np.arange(SIZE, dtype=np.uint32)[None, :, None]
    if op == 0:
        # CTA r wrote its neighbour's words, plus r, into CTA r + 2: CTA r holds those of r - 1, plus r - 2.
        moved = np.roll(data, 1, axis=1) + (rank - np.uint32(2)) % np.uint32(SIZE)
        half = WORDS // 2
        want = np.concatenate([(data * np.uint32(SIZE) + rank)[..., :half], moved[..., half:]], axis=2)
    elif op == 1:
        want = data.reshape(clusters, SIZE, SIZE, WORDS // SIZE).transpose(0, 2, 1, 3)
    else:
        want = np.roll(data, 1, axis=1)
    want = np.ascontiguousarray(want)
    grid = clusters * SIZE
    return Launch(
        raw(data),
        data.nbytes,
        lambda out, _: exact(want, out),
        op,
        data.size,
        grid=grid,
        cluster=SIZE,
        smem=4096,
    )


COMMON = ("cluster_rank", "cluster_size", "mapa")
CASES = [
    Case(
        "cluster.shared_words",
        "cluster",
        (*COMMON, "cluster_sync", "cluster_arrive", "cluster_wait", "lds32_cluster", "sts32_cluster"),
        lambda: cluster_launch(0),
    ),
    Case(
        "cluster.remote_arrive",
        "cluster",
        (*COMMON, "mbar_arrive_cluster", "mbar_wait_cluster", "sts32_cluster"),
        lambda: cluster_launch(1),
    ),
    Case(
        "cluster.bulk_copy",
        "cluster",
        (*COMMON, "mbar_arrive_expect_tx_cluster", "bulk_s2s", "mbar_wait_cluster"),
        lambda: cluster_launch(2),
    ),
]
