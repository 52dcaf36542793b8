"""The simulation behind the rule for the size of shards, against hand and bound."""

import numpy as np
import pytest

from benchmarks.balance import RANKS, costs_of, dynamic, kinds, static
from benchmarks.starts import requests


def test_by_hand():
    shards = np.array([4.0, 1.0, 2.0, 1.0])
    assert static(shards, np.ones(2)) == pytest.approx(6 / 4)  # 4 + 2 and 1 + 1
    assert dynamic(shards, np.ones(2)) == pytest.approx(1)  # 4 and 1 + 2 + 1
    assert dynamic(np.ones(3), np.array([1.0, 0.5])) == pytest.approx(2 / (3 / 1.5))


@pytest.mark.parametrize("seed", range(3))
def test_a_queue_ends_at_most_one_shard_after_a_perfect_split(seed):
    shards = np.random.default_rng(seed).pareto(1.5, 400) + 1
    perfect = shards.sum() / 20
    assert 1 <= dynamic(shards, np.ones(20)) <= (perfect + shards.max()) / perfect  # Graham 1966
    assert static(shards, np.ones(20)) >= dynamic(shards, np.ones(20)) * 0.95


def test_a_thousand_ranks_show_what_the_page_says():
    found = {}
    for kind, rows, speeds in kinds(0.1, 3.0):
        assert rows.mean() == pytest.approx(1, rel=1e-3)
        found[kind] = [f(costs_of(rows, k), speeds) for f in (static, dynamic) for k in (1, 20)]
    assert costs_of(rows, 20).shape == (20 * RANKS,)
    assert max(found["even"]) < 1.05
    assert max(found["local"]) < 1.10
    assert found["sorted"][0] > 2.5 > 2.0 > found["sorted"][1] > found["sorted"][3] > 1
    assert found["slow"][1] > 1.9 > 1.2 > found["slow"][3]


def test_the_requests_of_a_rank_do_not_grow_with_the_run(tmp_path):
    """Without work of its own it looks at no other rank's shards; the first rank concludes, and does."""
    few, many = (sum(requests(tmp_path / str(n), n, 1, finished=True).values()) for n in (6, 18))
    assert few == many < 30
    busy = [sum(requests(tmp_path / f"new-{n}", n, 1, finished=False).values()) for n in (6, 18)]
    assert busy[0] == busy[1] < 40
    leads = [requests(tmp_path / f"first-{n}", n, 0, finished=True)["_open"] for n in (6, 18)]
    assert 12 <= leads[1] - leads[0] <= 24
