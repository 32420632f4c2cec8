"""Which replica is asked what, and what becomes of the requests of one that dies."""

from __future__ import annotations

import random
from collections import Counter

from medbench.harness.contracts import Completion, Passed, Request
from medbench.harness.engines.replicas.dispatch import Dispatcher


def requests(count: int) -> list[Request]:
    return [Request(f"q{number}", (), "?", 8) for number in range(count)]


def with_replicas(count: int, room: int = 64) -> Dispatcher:
    dispatcher = Dispatcher()
    for replica in range(count):
        dispatcher.join(replica, room)
    return dispatcher


def ask(dispatcher: Dispatcher, count: int) -> dict[int, list[str]]:
    for request in requests(count):
        dispatcher.accept(request)
    return dealt(dispatcher)


def dealt(dispatcher: Dispatcher) -> dict[int, list[str]]:
    return {replica: [one.id for one in found] for replica, found in dispatcher.deal().items()}


def done(id: str) -> Completion:
    return Completion(id, "The answer is (A).", "stop")


def test_a_request_goes_to_the_replica_with_the_fewest_under_way() -> None:
    dispatcher = with_replicas(3)
    first = ask(dispatcher, 6)
    assert [len(first[replica]) for replica in range(3)] == [2, 2, 2]
    for id in first[1]:
        dispatcher.finished(1, done(id))
    dispatcher.accept(Request("next", (), "?", 8))
    assert dealt(dispatcher) == {1: ["next"]}


def test_a_replica_gets_no_more_than_its_room() -> None:
    dispatcher = with_replicas(2, room=3)
    found = ask(dispatcher, 10)
    assert sorted(map(len, found.values())) == [3, 3]
    assert not dispatcher.has_room()
    dispatcher.finished(0, done(found[0][0]))
    assert [len(ids) for ids in dealt(dispatcher).values()] == [1]


def test_requests_of_a_node_that_is_gone_are_asked_again_at_once_and_blame_nobody() -> None:
    dispatcher = with_replicas(2)
    found = ask(dispatcher, 8)
    for _ in range(3):
        dispatcher.leave(0, "its node is gone", blamed=False)
        dispatcher.join(0, 64)
        dispatcher.deal()
    assert dispatcher.unfinished == 8
    assert sum(dispatcher.under_way(replica) for replica in (0, 1)) == 8
    assert len(found[0]) == 4


def test_after_a_death_a_replica_has_one_suspect_at_a_time() -> None:
    dispatcher = with_replicas(2)
    lost = ask(dispatcher, 8)[0]
    assert dispatcher.leave(0, "its process is gone") == 4
    dispatcher.join(0, 64)
    again = dealt(dispatcher)
    assert sorted(id for ids in again.values() for id in ids) == sorted(lost[:2])
    assert all(len(ids) == 1 for ids in again.values())
    (suspect,) = again[0]
    dispatcher.finished(0, done(suspect))
    assert dealt(dispatcher) == {0: [lost[2]]}


def test_what_kills_two_replicas_is_given_up_with_its_id_and_nothing_else_is() -> None:
    """Played out for every choice of the poison among many requests, and of the order in which replies come."""
    for seed in range(30):
        draw = random.Random(seed)
        dispatcher = with_replicas(3, room=8)
        waiting, poison = requests(40), f"q{draw.randrange(40)}"
        at = {replica: list[str]() for replica in range(3)}
        answers: Counter[str] = Counter()
        deaths = 0
        while waiting or dispatcher.unfinished:
            while waiting and dispatcher.has_room():
                dispatcher.accept(waiting.pop(0))
            for replica, some in dispatcher.deal().items():
                at[replica] += [one.id for one in some]
            replica = draw.choice([one for one in at if at[one]])
            id = at[replica].pop(draw.randrange(len(at[replica])))
            if id == poison:
                deaths += 1
                dispatcher.leave(replica, "its process is gone")
                at[replica] = []
                dispatcher.join(replica, 8)
            elif dispatcher.finished(replica, done(id)):
                answers[id] += 1
            for one in dispatcher.give_up() if not waiting else ():
                assert one.error is not None
                assert "2 replicas in turn were lost" in one.error
                assert one.id == poison
                answers[one.id] += 1
        assert answers == Counter(one.id for one in requests(40))
        assert deaths == 2


def test_several_poisons_are_all_found_and_no_other_request_is_given_up() -> None:
    for seed in range(10):
        draw = random.Random(seed)
        dispatcher, waiting, poisons = with_replicas(2, room=8), requests(60), {"q3", "q30", "q50"}
        at = {replica: list[str]() for replica in range(2)}
        errors, deaths = list[str](), 0
        while waiting or dispatcher.unfinished:
            while waiting and dispatcher.has_room():
                dispatcher.accept(waiting.pop(0))
            errors += [one.id for one in dispatcher.give_up()] if not waiting else []
            for replica, some in dispatcher.deal().items():
                at[replica] += [one.id for one in some]
            if not any(at.values()):
                continue
            replica = draw.choice([one for one in at if at[one]])
            id = at[replica].pop(draw.randrange(len(at[replica])))
            if id in poisons:
                deaths += 1
                dispatcher.leave(replica, "its process is gone")
                at[replica] = []
                dispatcher.join(replica, 8)
            else:
                dispatcher.finished(replica, done(id))
        assert {*errors} == poisons
        assert len(errors) == 3
        assert deaths <= 15


def test_nothing_is_lost_or_answered_twice_at_random_deaths() -> None:
    draw = random.Random(0)
    dispatcher, waiting = with_replicas(4, room=16), requests(2000)
    at = {replica: list[str]() for replica in range(4)}
    answers: Counter[str] = Counter()
    while waiting or dispatcher.unfinished:
        while waiting and dispatcher.has_room():
            dispatcher.accept(waiting.pop())
        for replica, some in dispatcher.deal().items():
            at[replica] += [one.id for one in some]
        assert waiting or dispatcher.give_up() == []
        replica = draw.choice([one for one in at if at[one]])
        if draw.random() < 0.01:
            dispatcher.leave(replica, "its process is gone")
            dispatcher.join(replica, 16)
            late, at[replica] = at[replica], []
            assert not dispatcher.finished(replica, done(late[0]))  # what it still says does not count
            continue
        id = at[replica].pop(0)
        answers[id] += dispatcher.finished(replica, done(id))
    assert len(answers) == 2000
    assert set(answers.values()) == {1}


def test_milestones_that_are_passed_again_are_no_news() -> None:
    dispatcher = with_replicas(2)
    (id, *_) = ask(dispatcher, 2)[0]
    assert dispatcher.passed(0, Passed(id, 256))
    dispatcher.leave(0, "its process is gone")
    assert dealt(dispatcher) == {1: [id]}
    assert not dispatcher.passed(0, Passed(id, 512))
    assert not dispatcher.passed(1, Passed(id, 256))
    assert dispatcher.passed(1, Passed(id, 512))
