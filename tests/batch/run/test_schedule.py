"""The schedule with a fake engine: its laws on random traces, then each rule alone."""

import logging
import random

import pytest

from atp_cpp.batch.run.schedule import Job, Schedule
from atp_cpp.errors import AtpError, StageError
from support.fake_batch_engine import FakeCaches, FakeSequence
from support.fake_engine import FakeEngine


class Engine(FakeCaches):
    info = FakeEngine.info
    plan, words = (), ()
    _report = FakeEngine._report

    def __init__(self, **steer):
        super().__init__()
        vars(self).update(steer)


def job(name, *needs, n_words=3, n_predict=100, error=None, **fields):
    words = tuple(f" {name}{i}" for i in range(n_words))
    sequence = FakeSequence(needs=needs or (8,), words=words, name=name, **fields)
    return Job(sequence, {"n_predict": n_predict}, name, error)


def run(engine, jobs, *, n_parallel=3, kv_budget=10**6, ready=lambda: True):
    schedule = Schedule(engine, n_parallel=n_parallel, kv_budget=kv_budget)
    return list(schedule.run(iter(jobs), ready))


def said(outcomes):
    return {job.tag: str(o) if isinstance(o, AtpError) else o.text for job, o in outcomes}


def starts(engine):
    return [what for kind, what in engine.log if kind == "start"]


# ---- laws


class LawBroken(BaseException):
    """No error of a caption, which the schedule would take for its result."""


class Trace:
    """A random engine, random jobs, and what must hold whenever a step is taken."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        n_stages = rng.randint(1, 4)
        self.sizes = tuple(rng.choice((4, 8, 24)) for _ in range(n_stages))
        self.n_parallel = rng.randint(1, 6)
        self.engine = Engine(
            sizes=self.sizes, cell_step=rng.choice((1, 4, 16)), n_shared=rng.choice((0, 3))
        )
        self.engine.on_step = self.watch
        self.jobs = [self.job(i) for i in range(rng.randint(0, 40))]
        self.kv_budget = self.budget()
        self.at = 0  # jobs that were drawn
        self.was_ready = True
        self.schedule = Schedule(self.engine, n_parallel=self.n_parallel, kv_budget=self.kv_budget)

    def budget(self):
        most = max((self.bytes_of(job) for job in self.jobs), default=100)
        return max(1, int(most * self.rng.choice((0.3, 1.0, 1.3, 2.5, 4, 100))))

    def bytes_of(self, job):
        """What it takes in caches of its own."""
        step, shared = self.engine.cell_step, self.engine.n_shared
        needs = [-(-(n + shared) // step) * step for n in job.sequence.needs]
        return sum(n * size for n, size in zip(needs, self.sizes, strict=True))

    def job(self, i):
        rng = self.rng
        bound = [rng.randint(10, 60)]
        for _ in self.sizes[1:]:
            bound.append(rng.randint(1, bound[-1]))
        needs = [rng.randint(1, n) for n in bound] if rng.random() < 0.5 else bound
        fail, error = {}, None
        luck = rng.random()
        if luck < 0.05:
            fail["start"] = StageError("start failed")
        elif luck < 0.1:
            fail["step"] = StageError("poison")  # whenever it is under way
        elif luck < 0.13:
            at = rng.randint(1, 50)
            fail["step"] = lambda engine: StageError("once") if engine.steps == at else None
        elif luck < 0.16:
            fail["alone"] = "NaN"
        elif luck < 0.2:
            error = AtpError("known bad")
        return job(i, *needs, bound=tuple(bound), n_words=rng.randint(0, 12), fail=fail,
                   n_predict=rng.randint(1, 12), error=error)  # fmt: skip

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == len(self.jobs):
            raise StopIteration
        self.at += 1
        return self.jobs[self.at - 1]

    def ready(self):
        self.was_ready = self.rng.random() < 0.8
        return self.was_ready

    def watch(self):
        try:
            self.look()
        except AssertionError as error:
            raise LawBroken(str(error)) from error

    def look(self):
        """Before a step: nothing above the limits, no place idle that the next job could take."""
        engine, schedule = self.engine, self.schedule
        assert 0 < len(engine.live) <= self.n_parallel
        used = engine.used()
        assert all(a <= b for a, b in zip(used, engine.reserved, strict=True))
        cost = sum(n * size for n, size in zip(engine.reserved, self.sizes, strict=True))
        assert cost <= self.kv_budget
        if len(engine.live) == self.n_parallel or schedule._alone:
            return
        if schedule._room.better:  # on purpose
            return
        waiting = schedule._waiting
        if waiting is not None:
            assert not engine.fits(waiting.sequence)
        else:
            assert self.at == len(self.jobs) or not self.was_ready


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_laws_on_random_traces(first):
    for seed in range(first, first + 50):
        trace = Trace(seed)
        outcomes = list(trace.schedule.run(trace, trace.ready))
        assert sorted(job.tag for job, _ in outcomes) == list(range(len(trace.jobs))), seed
        assert trace.engine.live == {}
        first_starts = list(dict.fromkeys(starts(trace.engine)))
        assert first_starts == sorted(first_starts), seed
        for ended, outcome in outcomes:
            check_outcome(trace, ended, outcome, seed)


def check_outcome(trace, ended, outcome, seed):
    sequence = ended.sequence
    if ended.error is not None:
        assert outcome is ended.error
    elif "start" in sequence.fail:
        assert outcome is sequence.fail["start"] or "budget" in str(outcome)
    elif isinstance(outcome, AtpError):
        too_large = "the budget of" in str(outcome)
        assert too_large == (trace.bytes_of(ended) > trace.kv_budget), (seed, str(outcome))
        if not too_large:  # and no other's failure became its own
            expected = {"NaN"} if "alone" in sequence.fail else {"poison", "once"}
            assert sequence.fail and str(outcome) in expected, (seed, str(outcome))
    else:
        assert outcome.text == "".join(sequence.words[: ended.options["n_predict"]]), seed


def test_the_traces_reach_what_they_are_for():
    """Waits, growth, division, failures and refusals all happen in them."""
    seen = dict.fromkeys(("waits", "grows", "fails", "refused"), 0)
    for seed in range(100):
        trace = Trace(seed)
        outcomes = list(trace.schedule.run(trace, trace.ready))
        log = trace.engine.log
        seen["grows"] += sum(kind == "reserve" for kind, _ in log) > 1
        seen["fails"] += len(starts(trace.engine)) > len(set(starts(trace.engine)))
        seen["refused"] += any("the budget of" in str(o) for _, o in outcomes)
        steps = [n for kind, n in log if kind == "step"]
        seen["waits"] += any(n < trace.n_parallel for n in steps[:-20])
    assert min(seen.values()) >= 10, seen


# ---- one by one


def test_a_finished_caption_makes_room_at_once():
    engine = Engine()
    outcomes = run(engine, [job("a", n_words=2), job("b", n_words=5), job("c", n_words=2)],
                   n_parallel=2)  # fmt: skip
    assert [j.tag for j, _ in outcomes] == ["a", "c", "b"]
    kinds = [entry for entry in engine.log if entry[0] in ("start", "step")]
    assert kinds == [
        ("start", "a"), ("start", "b"), ("step", 2), ("start", "c"), ("step", 2), ("step", 1),
        ("step", 1),
    ]  # fmt: skip


def test_a_job_that_does_not_fit_waits_and_holds_back_smaller_ones():
    engine = Engine(n_shared=0)
    jobs = [job("a", 20, n_words=4), job("big", 40, n_words=2), job("small", 4, n_words=2)]
    outcomes = run(engine, jobs, kv_budget=44 * 8)
    assert starts(engine) == ["a", "big", "small"]
    assert [j.tag for j, _ in outcomes] == ["a", "big", "small"]


def test_a_job_that_waits_is_tried_again_only_when_it_may_fit():
    """Each try costs the stages before the one without room."""
    engine = Engine(sizes=(8, 1), n_shared=0)
    small = [job(i, 4, 1, n_words=2 + i) for i in range(4)]
    outcomes = run(engine, [*small, job("big", 12, 1, n_words=2)], n_parallel=5)
    assert len(outcomes) == 5
    assert [what for kind, what in engine.log if kind == "refuse"] == ["big"]
    at = engine.log.index(("start", "big"))
    assert engine.log[at - 1] == ("step", 3)  # where the second of the small ones ended


def test_short_memory_is_the_error_of_one():
    jobs = [job("a"), job("b", fail={"start": MemoryError("std::bad_alloc")}), job("c")]
    texts = said(run(Engine(), jobs))
    assert texts["b"] == "MemoryError in the engine: std::bad_alloc"
    assert texts["c"] == " c0 c1 c2"


def test_a_caption_that_ends_with_its_first_token():
    outcomes = run(Engine(), [job("a", n_words=1), job("b", n_predict=1), job("c")])
    assert said(outcomes) == {"a": " a0", "b": " b0", "c": " c0 c1 c2"}
    assert [j.tag for j, _ in outcomes] == ["a", "b", "c"]


def test_caches_that_are_too_small_are_made_larger_up_to_the_budget():
    engine = Engine(n_shared=0)
    outcomes = run(engine, [job("a", 8), job("b", 64), job("c", 8)], n_parallel=2,
                   kv_budget=64 * 8)  # fmt: skip
    assert said(outcomes)["b"] == " b0 b1 b2"
    assert [cells for kind, cells in engine.log if kind == "reserve"] == [[16], [64]]


def test_a_job_too_large_for_the_budget_is_its_own_error():
    outcomes = run(Engine(n_shared=0), [job("a"), job("b", 68), job("c")], kv_budget=64 * 8)
    texts = said(outcomes)
    assert texts["a"] == " a0 a1 a2" and texts["c"] == " c0 c1 c2"
    for part in ("--kv-budget", "--ctx-size", "budget of 512 bytes", "needs up to 544 bytes"):
        assert part in texts["b"]
    assert "\n" not in texts["b"]


def test_every_job_too_large_is_an_error_each():
    outcomes = run(Engine(), [job(i, 40) for i in range(5)], kv_budget=8)
    assert len(outcomes) == 5 and all(isinstance(o, StageError) for _, o in outcomes)


def test_an_error_of_one_is_its_own():
    bad = StageError("too long")
    jobs = [job("a"), job("b", fail={"start": bad}), job("c", error=AtpError("no such file"))]
    outcomes = run(Engine(), jobs)
    assert said(outcomes) == {"a": " a0 a1 a2", "b": "too long", "c": "no such file"}


def test_an_error_that_ends_one_caption_in_a_step():
    outcomes = run(Engine(), [job("a"), job("b", fail={"alone": "NaN"}), job("c")])
    assert said(outcomes) == {"a": " a0 a1 a2", "b": "NaN", "c": " c0 c1 c2"}
    assert {type(o) for j, o in outcomes if j.tag == "b"} == {StageError}


def test_a_failed_step_costs_only_the_one_whose_fault_it_was(caplog):
    caplog.set_level(logging.WARNING, "atp_cpp")
    jobs = [job("a"), job("b", fail={"step": StageError("NaN")}), job("c"), job("d")]
    engine = Engine()
    outcomes = run(engine, jobs, n_parallel=3)
    assert said(outcomes) == {"a": " a0 a1 a2", "b": "NaN", "c": " c0 c1 c2", "d": " d0 d1 d2"}
    assert starts(engine) == ["a", "b", "c", "a", "b", "c", "d"]
    assert [n for kind, n in engine.log if kind == "step"][:6] == [3, 1, 1, 1, 1, 1]
    assert "3 captions failed together" in caplog.text


def test_while_the_next_is_not_ready_those_under_way_go_on():
    engine = Engine()
    answers = iter([False, False, True] + [True] * 10)
    run(engine, [job("a", n_words=4), job("b")], ready=lambda: next(answers))
    order = [entry for entry in engine.log if entry[0] in ("start", "step")]
    assert order[:4] == [("start", "a"), ("step", 1), ("step", 1), ("start", "b")]


def test_stop_lets_those_under_way_end():
    engine = Engine()
    schedule = Schedule(engine, n_parallel=2, kv_budget=10**6)
    ended = schedule.run(iter([job(i, n_words=i + 2) for i in range(10)]))
    first = next(ended)
    schedule.stop()
    assert [j.tag for j, _ in [first, *ended]] == [0, 1]
    assert starts(engine) == [0, 1]


def test_what_the_jobs_raise_comes_after_those_under_way():
    def jobs():
        yield job("a")
        yield job("b", n_words=9)
        raise OSError("the list is gone")

    schedule = Schedule(Engine(), n_parallel=3, kv_budget=10**6)
    seen = []
    with pytest.raises(OSError, match="the list is gone"):
        seen.extend(j.tag for j, _ in schedule.run(jobs()) if not seen.append(j.tag))
    assert sorted(set(seen)) == ["a", "b"]


def test_an_interrupt_goes_through_and_leaves_nothing_under_way():
    engine = Engine()

    def interrupt():
        raise KeyboardInterrupt

    engine.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(engine, [job("a"), job("b")])
    assert engine.log[-1] == ("reset", 2)
    assert engine.live == {}


def test_leaving_early_gives_up_those_under_way():
    engine = Engine()
    ended = Schedule(engine, n_parallel=4, kv_budget=10**6).run(
        iter([job("a"), job("b", n_words=9)])
    )
    next(ended)
    ended.close()
    assert engine.live == {} and engine.log[-1] == ("reset", 1)


def test_jobs_are_drawn_only_when_there_is_a_place():
    drawn = []

    def jobs():
        for i in range(10):
            drawn.append(i)
            yield job(i, n_words=3)

    engine = Engine()
    engine.on_step = lambda: drawn.append("step")
    run(engine, jobs(), n_parallel=2)
    assert drawn[:5] == [0, 1, "step", "step", 2]
