"""Which samples are in which batch."""

import collections
import pickle

import pytest

from wan_tpu.dataset.order import Order

SIZES = [0] * 7 + [1] * 3 + [2]
"""Three sizes: of seven samples, of three, of one."""


def batches(order: Order, count: int, start: int = 0) -> list[list[int]]:
    return [order.batch(number) for number in range(start, start + count)]


@pytest.mark.parametrize("batch", [1, 2, 4, 9])
def test_every_batch_is_of_one_size_and_nothing_is_left_out(batch):
    """After a cycle every sample was used `batch` times; a size's remainders are never dropped."""
    order = Order(SIZES, batch=batch, seed=3)
    made = batches(order, 2 * len(SIZES))
    assert all(len(each) == batch and len({SIZES[i] for i in each}) == 1 for each in made)
    for cycle in (made[: len(SIZES)], made[len(SIZES) :]):
        used = collections.Counter(i for each in cycle for i in each)
        assert used == dict.fromkeys(range(len(SIZES)), batch)


def test_no_sample_comes_again_before_all_of_its_size_have_come():
    order = Order(SIZES, batch=2, seed=1)
    stream = [i for each in batches(order, 5 * len(SIZES)) for i in each]
    for size in (0, 1, 2):
        of_size = [i for i in stream if SIZES[i] == size]
        count = SIZES.count(size)
        rounds = [of_size[i : i + count] for i in range(0, len(of_size), count)]
        assert all(len(set(each)) == count for each in rounds)
    largest = [i for i in stream if SIZES[i] == 0]
    rounds = {tuple(largest[i : i + 7]) for i in range(0, 70, 7)}
    assert len(rounds) == 10  # each is shuffled anew, in every cycle


def test_the_order_is_a_function_of_seed_and_number_alone():
    order = Order(SIZES, batch=3, seed=5)
    expected = batches(order, 40)
    assert batches(Order(SIZES, batch=3, seed=5), 20, start=20) == expected[20:]
    assert [Order(SIZES, batch=3, seed=5).batch(n) for n in (31, 2, 17)] == [
        expected[n] for n in (31, 2, 17)
    ]
    assert batches(pickle.loads(pickle.dumps(order)), 40) == expected
    for other in (6, -5, 5 + 2**32):
        assert batches(Order(SIZES, batch=3, seed=other), 40) != expected


def test_a_size_smaller_than_a_batch_goes_round_within_it():
    used = collections.Counter(Order([0, 0], batch=5, seed=0).batch(0))
    assert sorted(used.values()) == [2, 3]
