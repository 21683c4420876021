"""Who is next."""

import pytest

from server.jobs.fair_queue import FairQueue


def test_one_owner_is_served_in_order():
    queue = FairQueue()
    for job in ("a1", "a2", "a3"):
        queue.add("a", job)
    assert queue.order() == ["a1", "a2", "a3"]
    assert [queue.position(job) for job in ("a1", "a2", "a3")] == [1, 2, 3]


def test_owners_take_turns_whatever_they_have_waiting():
    """Red when the queue is first come, first served: b would wait for all of a."""
    queue = FairQueue()
    for job in ("1a", "2a", "3a"):
        queue.add("a", job)
    queue.add("b", "4b")
    served = []
    while len(queue):
        job = queue.order()[0]
        queue.remove(job[-1], job)
        queue.served(job[-1])
        served.append(job)
    assert served == ["1a", "4b", "2a", "3a"]


def test_a_new_owner_does_not_pass_one_who_has_waited_as_long():
    queue = FairQueue()
    queue.add("a", "1a")
    queue.add("b", "2b")
    queue.served("a")
    assert queue.order() == ["2b", "1a"]


def test_a_job_that_comes_back_is_the_first_of_its_owner():
    queue = FairQueue()
    queue.add("a", "a2")
    queue.add("a", "a1")
    assert queue.order() == ["a1", "a2"]


def test_what_is_taken_out_has_no_position():
    queue = FairQueue()
    queue.add("a", "a1")
    queue.remove("a", "a1")
    assert len(queue) == queue.count("a") == 0
    with pytest.raises(KeyError):
        queue.position("a1")


def serve(queue, number):
    """The owners of the next jobs, each of which is replaced by another of its owner's."""
    served = []
    for _ in range(number):
        job = queue.order()[0]
        owner, work = job[-1], queue_work(job)
        queue.remove(owner, job)
        queue.served(owner, work)
        queue.add(owner, f"{int(job[:4]) + 2:04}{job[4:]}", work)
        served.append(owner)
    return served


def queue_work(job):
    return float(job.split(":")[1][:-1])


def test_owners_share_by_work():
    """Red when turns are counted: who asks for eight times the work then has eight ninths."""
    queue = FairQueue()
    queue.add("a", "0001:8a", 8)
    queue.add("b", "0002:1b", 1)
    served = serve(queue, 90)
    assert served.count("a") == 10
    assert served.count("b") == 80


def test_who_comes_late_has_no_claim_on_the_past():
    queue = FairQueue()
    queue.add("a", "0001:1a", 1)
    serve(queue, 100)
    queue.add("b", "0002:1b", 1)
    assert sorted(serve(queue, 10)) == ["a"] * 5 + ["b"] * 5


def test_who_leaves_and_comes_back_still_owes_what_it_had():
    """Red when an owner's account is closed with its last waiting job."""
    queue = FairQueue()
    queue.add("b", "2b")
    queue.add("a", "1a", 8)
    queue.remove("a", "1a")
    queue.served("a", 8)
    queue.add("a", "3a", 8)
    queue.add("b", "4b")
    assert queue.order() == ["2b", "4b", "3a"]
