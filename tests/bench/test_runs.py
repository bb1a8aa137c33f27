"""The whole tool against servers of known behaviour: what they did is what it must say."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from bench.benchmarking.rows import Row
from tests.bench.scripted import GOOD, PREDICTIONS, Reply, Script, scripted
from tests.bench.tool import COMMAND, Result, arguments, benchmark, finished
from tests.client import ENVIRON, free_port
from tests.support import ROOT, wait_for

SCHEMA = json.loads((ROOT / "bench" / "schema.json").read_text())


def p(rows: list[Row], percent: float) -> float:
    """A percentile as numpy has it."""
    values = [row.latency_ms for row in rows if row.outcome == "ok"]
    return float(np.percentile(values, percent, method="inverted_cdf"))


def check(result: Result) -> None:
    """What holds of every run: the JSON is as described, and fits the CSV; lines fit a terminal."""
    jsonschema.Draft202012Validator(SCHEMA).validate(result.summary)
    counts = {level["level"]: level["requests"] for level in result.summary["levels"]}
    measured = result.measured
    assert counts == {name: sum(row.level == name for row in measured) for name in counts}
    assert max((len(line) for line in result.out.splitlines()), default=0) <= max(
        80, *(len(line) for line in result.out.splitlines() if str(result.folder) in line), 0
    )


def test_a_steady_server_is_measured_as_it_is(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--iterations", "150", "--concurrent", "3")
        check(result)
        assert server.asked == len(result.rows)
    level = result.level
    assert (level["requests"], level["ok"], level["errors"]) == (150, 150, 0)
    assert result.reasons == set()
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95)):
        told = level["latency_ms"][name]["value"]
        assert told == pytest.approx(p(result.measured, percent), abs=0.001)
    assert level["latency_ms"]["p99"] is None
    assert "p99 662" in result.notes
    assert 20 <= level["latency_ms"]["min"] <= level["latency_ms"]["p50"]["value"]
    assert level["stages_ms"]["inference"]["p50"] == 20
    assert level["predictions"]["classes"] == {"person": 150, "cat": 150}
    assert "closed loop: clients wait" in result.notes
    assert "VERDICT:" in result.out


def test_every_second_is_sampled(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--duration", "3")
    samples = [sample for sample in result.samples if sample.phase == "measure"]
    assert 2 <= len(samples) <= 4
    for sample in samples:
        assert sample.cpu_pct is not None
        assert sample.client_cpu_pct is not None
        assert sample.loop_lag_ms is not None
        assert sample.health_ms is not None
        assert sample.server_rss_mb == 50
        assert sample.tpu_temp_c is None


def test_two_kinds_of_requests_show_in_the_percentiles(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(delay_s=0.4 if number % 5 == 0 else 0.01)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "100", "--concurrent", "4",
                           "--warmup", "0")  # fmt: skip
    latency = result.level["latency_ms"]
    assert latency["p50"]["value"] < 400
    assert latency["p90"]["value"] >= 400
    assert sum(row.latency_ms >= 400 for row in result.measured) >= 20


def stalls(number: int) -> Reply:
    """Once, everything stands still."""
    return Reply(delay_s=0.01, stall_s=1.5 if number == 60 else 0.0)


def test_an_open_loop_shows_what_a_stall_does_to_users(tmp_path: Path) -> None:
    with scripted(stalls) as server:
        result = benchmark(server.url, tmp_path, "--rate", "60", "--arrivals", "constant",
                           "--iterations", "200", "--warmup", "0")  # fmt: skip
    assert len(result.measured) == 200
    # 1.5 s at 60/s: some 90 requests came while it stood still, and most of them waited long.
    assert sum(row.latency_ms > 200 for row in result.measured) > 50
    assert result.level["latency_ms"]["p90"]["value"] > 700
    assert result.level["load"] == "open"


def test_a_closed_loop_says_that_it_can_not_show_a_stall(tmp_path: Path) -> None:
    with scripted(stalls) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "200", "--warmup", "0")
    assert sum(row.latency_ms > 750 for row in result.measured) == 1
    assert result.level["latency_ms"]["p95"]["value"] < 750
    note = re.search(r"one answer took (\d+) ms.* closed loop can't count", result.notes)
    assert note
    assert int(note[1]) >= 1500  # and as much more as a busy machine adds


def test_an_open_loop_sends_on_time_and_counts_from_the_schedule(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--rate", "50", "--duration", "3")
    rows = result.measured
    assert 90 <= len(rows) <= 210  # Poisson, 150 on average
    assert len({row.scheduled_s for row in rows}) == len(rows)
    for row in rows:
        assert row.latency_ms == pytest.approx(row.service_ms + row.send_delay_ms, abs=0.01)
        assert row.send_delay_ms >= 0


def test_the_same_seed_sends_at_the_same_moments(tmp_path: Path) -> None:
    gaps = []
    for number in (1, 2):
        with scripted() as server:
            result = benchmark(server.url, tmp_path / str(number), "--rate", "50",
                               "--iterations", "30")  # fmt: skip
        due = sorted(row.scheduled_s for row in result.measured)
        gaps.append(np.diff(due))
    assert np.allclose(gaps[0], gaps[1], atol=0.002)


def test_what_the_server_refuses_is_counted_apart(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(status=503 if number % 10 == 0 else 200)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "200", "--warmup", "0")
    check(result)
    level = result.level
    assert (level["ok"], level["rejected"], level["errors"]) == (180, 20, 0)
    assert level["statuses"] == {"200": 180, "503": 20}
    assert level["latency_ms"]["count"] == 180
    assert level["ok_per_s"]["value"] == pytest.approx(180 / level["seconds"], rel=1e-4)
    assert result.reasons == {"rejected"}
    assert result.status == 1
    assert "the server refused 10.0 % (20 of 200)" in result.out.replace("\n  ", " ")


def test_too_many_requests_are_refusals_too(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(status=429 if number % 2 else 200)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "40", "--warmup", "0")
    assert (result.level["ok"], result.level["rejected"]) == (20, 20)


def test_connections_that_break_are_errors(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(reset=number % 10 == 0)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "100", "--warmup", "0")
    assert result.level["outcomes"] == {"ok": 90, "reset": 10}
    assert result.reasons == {"errors"}
    assert result.status == 1


def test_answers_that_do_not_come_are_errors(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(hang=number == 5)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "30", "--timeout", "0.5",
                           "--warmup", "0")  # fmt: skip
    assert result.level["outcomes"] == {"ok": 29, "timeout": 1}
    (late,) = [row for row in result.measured if row.outcome == "timeout"]
    assert 500 <= late.latency_ms < 5000
    assert late.status is None


def test_what_is_no_http_is_an_error(tmp_path: Path) -> None:
    with scripted(Reply(status=7)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "10", "--warmup", "0")
    assert set(result.level["outcomes"]) <= {"parse", "http"}
    assert {"errors", "no_success"} <= result.reasons


def test_chunk_by_chunk_replies_are_read(tmp_path: Path) -> None:
    with scripted(Reply(chunked=True)) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "30")
    assert result.level["ok"] == 30
    assert result.level["stages_ms"] is None  # it tells none
    assert "tells no stages" in result.out


def test_a_slow_start_is_left_to_the_warm_up(tmp_path: Path) -> None:
    def slow_start(number: int) -> Reply:
        return Reply(delay_s=0.2 if number < 4 else 0.01)

    for warmup_s, phase in (("3", "warmup"), ("0", "measure")):
        with scripted(slow_start) as server:
            result = benchmark(server.url, tmp_path / phase, "--iterations", "60",
                               "--warmup", warmup_s)  # fmt: skip
        slow = [row for row in result.rows if row.seq < 4]
        assert {row.phase for row in slow} == {phase}
        assert min(row.latency_ms for row in slow) >= 200
        assert result.level["requests"] == 60


@pytest.mark.parametrize(
    "wrong",
    [
        Reply(predictions=PREDICTIONS[:1]),
        Reply(predictions=[PREDICTIONS[0] | {"score": 0.8556}, PREDICTIONS[1]]),
        Reply(predictions=[{"class": "person"}]),
        Reply(body=b"<html>"),
        Reply(body=b"[]"),
    ],
    ids=["fewer", "another score", "no box", "no JSON", "another JSON"],
)
def test_fast_but_wrong_is_invalid(tmp_path: Path, wrong: Reply) -> None:
    with scripted(lambda number: wrong if number == 20 else Reply()) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "30", "--warmup", "0")
    level = result.level
    assert (level["ok"], level["wrong"]) == (29, 1)
    assert result.reasons == {"wrong_answers"}
    assert result.status == 1


def test_answers_are_held_against_a_golden_file(tmp_path: Path) -> None:
    golden = tmp_path / "golden.json"
    with scripted() as server:
        benchmark(server.url, tmp_path / "1", "--iterations", "12", "--save-golden", str(golden))
        result = benchmark(
            server.url, tmp_path / "2", "--iterations", "12", "--golden", str(golden)
        )
    assert set(json.loads(golden.read_text())) == {"cat.jpeg", "coffee.jpeg", "person.jpeg"}
    assert result.reasons == set()
    other = Reply(predictions=[PREDICTIONS[0] | {"class": "dog"}, PREDICTIONS[1]])
    with scripted(other) as server:
        result = benchmark(
            server.url, tmp_path / "3", "--iterations", "12", "--golden", str(golden)
        )
    assert result.level["wrong"] == 12
    assert "not as in the golden file: no person" in result.out.replace("\n  ", " ")


def test_a_golden_file_that_can_not_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--save-golden", "/no/such/folder/golden.json")
        assert server.asked == 0
    assert (result.status, result.err.count("\n")) == (2, 1)


def test_nobody_there_is_told_in_one_line(tmp_path: Path) -> None:
    result = benchmark(f"http://127.0.0.1:{free_port()}", tmp_path / "out")
    assert result.status == 4
    (line,) = result.err.splitlines()
    assert line.startswith("benchmark: no server answers at http://127.0.0.1:")
    assert not (tmp_path / "out").exists()


def test_a_server_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    with scripted(lambda number: Reply(reset=number > 30)) as server:
        result = benchmark(server.url, tmp_path, "--mode", "normal")
    assert "server_gone" in result.reasons
    assert result.status == 1
    assert 50 < len(result.rows) < 70


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with scripted() as server:
        command = arguments(server.url, tmp_path, "--mode", "normal", plots=True)
        with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
            wait_for(lambda: server.asked > 60)
            process.send_signal(number)
            out, _ = process.communicate(timeout=60)
            seen = server.asked
    result = Result(process.returncode, out, "", tmp_path)
    check(result)
    assert result.status == 130
    assert seen - 2 <= len(result.rows) <= seen  # but for the one under way
    assert "interrupted" in result.reasons
    assert result.summary["run"]["interrupted"] is True
    assert result.file("benchmark_report_*.html").stat().st_size > 50_000


def test_what_a_kill_leaves_behind_can_be_reported(tmp_path: Path) -> None:
    with scripted() as server:
        command = arguments(server.url, tmp_path, "--mode", "normal", "--warmup", "0")
        with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.DEVNULL) as process:
            wait_for(lambda: server.asked > 150)
            process.kill()
        seen = server.asked
    csv = next(tmp_path.glob("benchmark_results_*.csv"))
    with csv.open("a") as file:
        file.write("20260101_000000,99,0,meas")  # a line that was cut short
    result = finished([*COMMAND, "--report", str(csv), "--no-plots"], tmp_path)
    assert result.status == 1
    assert seen * 0.3 < len(result.rows) <= seen
    assert result.reasons == {"interrupted"}
    assert result.summary["run"]["mode"] == "normal"


def test_a_report_is_drawn_again_from_the_csv_alone(tmp_path: Path) -> None:
    with scripted() as server:
        first = benchmark(server.url, tmp_path, "--iterations", "100", plots=True)
    before = first.level
    csv = str(first.file("benchmark_results_*.csv"))
    for path in tmp_path.iterdir():
        if str(path) != csv:
            path.unlink()
    again = finished([*COMMAND, "--report", csv], tmp_path)
    assert again.status in (0, 1)
    assert again.level == before
    assert len(list(tmp_path.glob("benchmark_*.png"))) >= 4


def test_percentiles_are_gated_at_661_and_662(tmp_path: Path) -> None:
    for count, there in ((661, False), (662, True)):
        with scripted(Reply(delay_s=0.001)) as server:
            result = benchmark(server.url, tmp_path / str(count), "--iterations", str(count),
                               "--concurrent", "8")  # fmt: skip
        level = result.level
        assert level["ok"] == count
        assert (level["latency_ms"]["p99"] is not None) == there
        if there:
            told = level["latency_ms"]["p99"]["value"]
            assert told == pytest.approx(p(result.measured, 99), abs=0.001)
            assert level["latency_ms"]["p99"]["high"] is not None


def three_at_a_time() -> Script:
    """The server answers each in 100 ms, but a fourth waits: 30 a second at most."""
    busy = [0.0] * 3

    def script(_number: int) -> Reply:
        now = time.monotonic()
        free = min(range(3), key=busy.__getitem__)
        busy[free] = max(now, busy[free]) + 0.1
        return Reply(delay_s=busy[free] - now)

    return script


def test_a_sweep_of_rates_shows_what_the_server_can(tmp_path: Path) -> None:
    with scripted(three_at_a_time()) as server:
        result = benchmark(server.url, tmp_path, "--sweep", "rate", "--duration", "2",
                           "--arrivals", "constant", "--warmup", "0")  # fmt: skip
    check(result)
    rates = [float(level["level"].removesuffix("/s")) for level in result.summary["levels"]]
    assert len(rates) == 7
    capacity = rates[4]
    assert 15 < capacity < 31
    first, *_, last = result.summary["levels"]
    assert last["latency_ms"]["p90"]["value"] > 2 * first["latency_ms"]["p50"]["value"]
    assert result.summary["knee"]["ok_per_s"] < 31
    assert {row.phase for row in result.rows} == {"baseline", "measure"}


def test_a_sweep_finds_the_knee(tmp_path: Path) -> None:
    with scripted(three_at_a_time()) as server:
        result = benchmark(server.url, tmp_path, "--sweep", "clients", "--duration", "2")
    check(result)
    knee = result.summary["knee"]
    assert knee["level"] in ("4 clients", "8 clients")  # the latter where the machine is busy
    assert knee["ok_per_s"] < 31
    names = [level["level"] for level in result.summary["levels"]]
    assert names[:4] == ["1 client", "2 clients", "4 clients", "8 clients"]
    assert f"Knee: {knee['level']}" in result.out


def test_levels_can_be_named(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--rate", "20,40", "--iterations", "30")
    check(result)
    levels = {level["level"]: level["requests"] for level in result.summary["levels"]}
    assert levels == {"20/s": 30, "40/s": 30}
    assert result.summary["knee"] == {
        "level": "40/s", "ok_per_s": pytest.approx(40, rel=0.6), "passed": False
    }  # fmt: skip


def test_equal_runs_are_the_same_and_slower_ones_are_not(tmp_path: Path) -> None:
    """Equal is a run to itself: two of them may differ by what else the machine does."""
    runs = []
    for name, delay_s in (("old", 0.05), ("slow", 0.2)):
        with scripted(Reply(delay_s=delay_s)) as server:
            runs.append(benchmark(server.url, tmp_path / name, "--iterations", "100",
                                  "--concurrent", "4"))  # fmt: skip
    old, slow = (result.file("benchmark_summary_*.json") for result in runs)
    itself = finished([*COMMAND, "--report", str(old), "--compare", str(old)], tmp_path)
    assert "No significant difference (of at least 5 %)." in itself.out
    told = finished([*COMMAND, "--report", str(slow), "--compare", str(old)], tmp_path)
    lines = [line for line in told.out.splitlines() if line.endswith("worse")]
    # A busy machine makes means uncertain; test_figures.py has all of them on known values.
    assert "p50" in {line[14:28].strip() for line in lines}
    assert max(map(len, told.out.splitlines())) <= 80


def test_think_time_is_kept(tmp_path: Path) -> None:
    with scripted(Reply()) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "10", "--delay", "0.1",
                           "--warmup", "0")  # fmt: skip
    due = [row.scheduled_s for row in result.measured]
    assert min(np.diff(due)) >= 0.1


def test_several_formats_are_sent_in_turn_and_each_file_is_unique(tmp_path: Path) -> None:
    with scripted(Reply(), keep_bodies=True) as server:
        result = benchmark(server.url, tmp_path, "--iterations", "40", "--format", "jpeg,png",
                           "--size", "160x120", "--unique", "--warmup", "0")  # fmt: skip
    assert len(set(server.bodies)) == 40
    assert {body[:3] for body in server.bodies} == {b"\xff\xd8\xff", b"\x89PN"}
    assert len(result.level["images"]) == 6


def test_a_key_is_sent_and_not_written_down(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret-key\n")
    with scripted(GOOD) as server:
        benchmark(server.url, tmp_path / "1", "--iterations", "3", "--api-key-file", str(file))
        benchmark(server.url, tmp_path / "2", "--iterations", "3", "--api-key", "s3cret-key",
                  "--header", "X-Other: s3cret-key")  # fmt: skip
    assert all(b"X-API-Key: s3cret-key\r\n" in head for head in server.heads)
    written = [path for path in tmp_path.glob("*/*") if "s3cret" in path.read_text()]
    assert written == []


def test_a_target_that_is_missed_is_invalid(tmp_path: Path) -> None:
    with scripted() as server:
        result = benchmark(server.url, tmp_path, "--iterations", "70", "--slo", "p50=1ms",
                           "--slo", "p90=60000ms")  # fmt: skip
    assert result.reasons == {"slo_missed"}
    assert [each["met"] for each in result.summary["run"]["slo"]] == [False, True]


def test_its_own_ceiling_is_printed() -> None:
    result = finished([*COMMAND, "--calibrate"], Path())
    assert result.status == 0
    found = re.match(r"this client's own ceiling: (\d+) requests/s of 50 kB", result.out)
    assert found
    assert int(found[1]) > 0  # docs/benchmarking.md has a quiet machine's
