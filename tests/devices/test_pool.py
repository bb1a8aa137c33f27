"""The pool: one queue, deadlines, retries, and a device process that fails in every way."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from app import models, settings
from app.errors import Busy, DeadlineExceeded, DeviceFailed, NoDevice, RequestError
from tests import colour_model
from tests.devices.conftest import TWO_CORES, Bench
from tests.support import wait_for

MakeBench = Callable[..., Bench]


def occupy(bench: Bench, clients: ThreadPoolExecutor, count: int) -> list[Future[int]]:
    """Fill both slots of a slow device, and then its queue, one job after the other."""
    waiting = []
    for number in range(count):
        waiting.append(clients.submit(bench.infer, number))
        taken = number + 1
        wait_for(lambda taken=taken: bench.status.in_flight + bench.pool.queue_depth == taken)  # type: ignore[misc]
    return waiting


def test_every_answer_is_for_its_own_picture(bench: Bench) -> None:
    reds = [step % 256 for step in range(500)]
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(bench.infer, reds)) == reds


def test_two_pictures_lie_in_slots_and_the_others_wait(bench: Bench) -> None:
    bench.behave("0.2")
    with ThreadPoolExecutor(5) as clients:
        waiting = occupy(bench, clients, 5)
        assert (bench.status.in_flight, bench.pool.queue_depth) == (2, 3)
        assert [each.result() for each in waiting] == [0, 1, 2, 3, 4]


def test_a_picture_that_comes_after_its_deadline_is_late(bench: Bench) -> None:
    bench.behave("0.2")
    with ThreadPoolExecutor(2) as clients:
        waiting = occupy(bench, clients, 2)  # no slot is free
        with pytest.raises(DeadlineExceeded):
            bench.infer(within_s=-0.1)
        assert [each.result() for each in waiting] == [0, 1]


def test_who_asked_for_an_edge_tpu_hears_that_the_cpu_answers(make_bench: MakeBench) -> None:
    bench = make_bench(expect_edgetpu=True).start()
    assert bench.infer(7) == 7
    assert bench.pool.is_degraded(bench.catalogue.default, "cpu")
    assert bench.pool.why_degraded(bench.catalogue.default).endswith("none is there")


def test_who_wants_no_cpu_in_its_place_hears_that_none_is_there(make_bench: MakeBench) -> None:
    bench = make_bench(expect_edgetpu=True, cpu_fallback=False)
    bench.pool.start()
    with pytest.raises(NoDevice, match="no Edge TPU is there"):
        bench.infer()


def test_two_cores_infer_two_pictures_at_a_time_while_a_third_lies_ready(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(device=TWO_CORES).start()
    old = bench.pid
    bench.behave("hang once")
    with ThreadPoolExecutor(6) as clients:
        hung = occupy(bench, clients, 1)
        wait_for(lambda: not bench.fault.read_text())
        # The other core answers, again and again, and each of them its own picture.
        assert [bench.infer(red) for red in (10, 20, 30)] == [10, 20, 30]
        assert not hung[0].done() or bench.pid != old
        bench.behave("0.2")
        occupied = [*hung, *(clients.submit(bench.infer, red) for red in (1, 2, 3, 4))]
        wait_for(lambda: (bench.status.in_flight, bench.pool.queue_depth) == (3, 2))
        assert [each.result() for each in occupied] == [0, 1, 2, 3, 4]
    assert dict(bench.status.failures) == {"hang": 1}


def test_what_two_cores_were_at_when_the_process_died_is_answered_by_the_next(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(device=TWO_CORES).start()
    bench.behave("0.5")
    with ThreadPoolExecutor(8) as clients:
        waiting = occupy(bench, clients, 8)
        bench.behave("")
        old = bench.kill(signal.SIGKILL)
        assert [each.result() for each in waiting] == list(range(8))
    assert dict(bench.status.failures) == {"died": 1}
    assert not psutil.pid_exists(old)


def test_two_cores_give_every_client_the_answer_for_its_own_picture(make_bench: MakeBench) -> None:
    bench = make_bench(device=TWO_CORES).start()
    reds = [step % 256 for step in range(500)]
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(bench.infer, reds)) == reds


def test_a_full_queue_refuses_at_once(make_bench: MakeBench) -> None:
    bench = make_bench(queue_limit=2).start()
    bench.behave("0.3")
    with ThreadPoolExecutor(4) as clients:
        waiting = occupy(bench, clients, 4)
        began = time.monotonic()
        with pytest.raises(Busy) as refusal:
            bench.infer()
        assert time.monotonic() - began < 0.2
        assert refusal.value.headers["Retry-After"] == "1"
        assert [each.result() for each in waiting] == [0, 1, 2, 3]


def test_clients_take_turns_at_a_device(bench: Bench) -> None:
    """One who comes last with one picture is not behind all of another's ten."""
    bench.behave("0.05")
    done: list[str] = []

    def ask(client: str) -> None:
        bench.infer(client=client)
        done.append(client)

    with ThreadPoolExecutor(11) as clients:
        for _ in range(10):
            clients.submit(ask, "greedy")
        wait_for(lambda: bench.pool.queue_depth == 8)
        clients.submit(ask, "modest")
    assert sorted(done) == ["greedy"] * 10 + ["modest"]
    assert done.index("modest") <= 4


def test_a_late_job_is_refused_and_never_run(bench: Bench) -> None:
    bench.behave("0.3")
    with ThreadPoolExecutor(2) as clients:
        waiting = occupy(bench, clients, 2)
        with pytest.raises(DeadlineExceeded):
            bench.infer(within_s=0.1)
        [each.result() for each in waiting]
    inferences = bench.status.inferences
    assert bench.infer(9) == 9
    assert bench.status.inferences == inferences + 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("die", "died"), ("abort", "died"), ("hang", "hang")],
)
def test_the_job_in_flight_is_answered_by_the_next_process(
    bench: Bench, fault: str, kind: str
) -> None:
    old = bench.pid
    bench.behave("0.2 once")
    with ThreadPoolExecutor(4) as clients:
        slow = occupy(bench, clients, 1)
        wait_for(lambda: not bench.fault.read_text())  # it has begun
        bench.behave(f"{fault} once")
        waiting = [clients.submit(bench.infer, red) for red in (10, 20, 30)]
        assert [each.result() for each in (*slow, *waiting)] == [0, 10, 20, 30]
    assert dict(bench.status.failures) == {kind: 1}
    assert not psutil.pid_exists(old)


def stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped; each is a moment after the signal."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_a_stopped_process_is_taken_for_hung(bench: Bench) -> None:
    old = bench.kill(signal.SIGSTOP)
    wait_for(lambda: stands_still(old))
    assert bench.infer(42) == 42
    assert dict(bench.status.failures) == {"hang": 1}
    assert not psutil.pid_exists(old)


def test_a_failed_inference_is_tried_again_in_the_same_process(bench: Bench) -> None:
    old = bench.pid
    bench.behave("fail once")
    assert bench.infer(7) == 7
    assert (bench.pid, dict(bench.status.failures)) == (old, {"invoke": 1})


def test_a_job_that_fails_twice_is_refused_and_the_device_serves_on(bench: Bench) -> None:
    bench.behave("fail")
    with pytest.raises(DeviceFailed, match="twice"):
        bench.infer()
    bench.behave("")
    assert bench.infer(3) == 3


def test_three_failed_inferences_in_a_row_restart_the_process(bench: Bench) -> None:
    bench.behave("fail")
    for _ in range(2):
        with pytest.raises(RequestError):
            bench.infer()
    wait_for(lambda: bench.status.restarts >= 1)
    bench.behave("")
    assert bench.infer(4) == 4


def test_the_last_words_of_a_process_explain_its_death(bench: Bench) -> None:
    bench.behave("abort")
    with pytest.raises(RequestError):
        bench.infer(within_s=2)
    wait_for(lambda: "transfer failed. Abort." in bench.status.reason)
    assert "SIGABRT" in bench.status.reason


def test_while_a_device_is_left_alone_pictures_are_refused_with_the_reason(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(backoff_max_s=60.0).start()
    bench.behave("abort")
    began = time.monotonic()
    with pytest.raises(RequestError):
        bench.infer(within_s=0.9)
    wait_for(lambda: bench.status.state == "waiting" and bench.status.restarts >= 2)
    with pytest.raises(NoDevice, match="cpu its process was killed by SIGABRT"):
        bench.infer(within_s=0.1)
    assert time.monotonic() - began < 15
    bench.behave("")
    assert bench.infer(11) == 11


def test_a_device_with_senseless_answers_does_not_become_ready(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.behave("nan")
    bench.pool.start()
    wait_for(lambda: bench.status.failures.get("selftest", 0) >= 1)
    assert bench.status.state != "ready"
    assert "number of its detections" in bench.status.reason
    bench.behave("")
    assert bench.infer(12) == 12


def test_an_idle_device_is_tested_and_restarted_when_it_hangs(make_bench: MakeBench) -> None:
    bench = make_bench(test_every_s=0.1).start()
    wait_for(lambda: bench.status.inferences >= 2)
    assert bench.status.state == "ready"
    old = bench.kill(signal.SIGSTOP)
    wait_for(lambda: bench.status.failures.get("hang", 0) == 1)
    bench.wait_ready()
    assert bench.pid != old


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again_later(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    path = colour_model.write(tmp_path / "colour.tflite")
    bench = make_bench(models.load(settings.load({"REEF_MODEL": str(path)})), backoff_max_s=0.2)
    path.write_bytes(path.read_bytes()[:200])
    bench.pool.start()
    wait_for(lambda: bench.status.failures.get("load", 0) >= 3)
    assert "can't load the model" in bench.status.reason
    colour_model.write(path)
    bench.wait_ready()


def test_a_compiled_model_without_an_edge_tpu_is_refused_at_once(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    path = colour_model.write(tmp_path / "compiled.tflite", for_edgetpu=True)
    bench = make_bench(models.load(settings.load({"REEF_MODEL": str(path)})))
    bench.pool.start()
    with pytest.raises(NoDevice, match="runs on edgetpu only"):
        bench.infer()


def test_a_process_that_never_stops_talking_can_still_hang(bench: Bench) -> None:
    bench.behave("chatter once")
    assert bench.infer(6) == 6
    assert dict(bench.status.failures) == {"hang": 1}


def test_a_stop_answers_everybody_and_leaves_no_process(bench: Bench) -> None:
    bench.behave("0.3")
    pid = bench.pid
    with ThreadPoolExecutor(4) as clients:
        waiting = occupy(bench, clients, 4)
        bench.pool.close()
        ends = [each.exception() for each in waiting]
    assert isinstance(ends[-1], NoDevice)
    # The first may have had its answer before.
    assert all(end is None or "stopped" in str(end) for end in ends)
    assert not psutil.pid_exists(pid)
    assert bench.status.state == "stopped"


def test_twenty_deaths_leak_neither_descriptor_nor_thread_nor_process(bench: Bench) -> None:
    bench.kill(signal.SIGKILL)
    assert bench.infer(0) == 0

    def held() -> tuple[int, int, int]:
        bench.wait_ready()
        ours = psutil.Process()
        return ours.num_fds(), threading.active_count(), len(ours.children(recursive=True))

    before = held()
    for red in range(20):
        bench.kill(signal.SIGKILL if red % 2 else signal.SIGSEGV)
        assert bench.infer(red) == red
    assert held() == before
