"""The benchmark as a container's job, through each Compose that this host has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.tool import CLIENT_REASONS, Result
from tests.container.engine import docker, once, told
from tests.container.test_compose import COMPOSES, Compose, missing
from tests.support import CAT

LIMIT_S = 300
MACHINE_REASONS = {"drift", "health_slow", "memory_grows", "no_recovery"}
"""What short runs on a busy machine may find."""

SOMEBODY = 4321
"""Where the tests run as root, the results shall belong to this user."""


@contextmanager
def up(name: str, folder: Path) -> Iterator[Compose]:
    """A project whose server is up."""
    compose = Compose(COMPOSES[name], folder)
    with compose.serving():
        yield compose


@pytest.fixture(scope="module", params=COMPOSES)
def compose(
    bench_image: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compose]:
    """Each Compose in turn."""
    if why := missing(COMPOSES[request.param]):
        pytest.skip(why)
    with up(request.param, tmp_path_factory.mktemp("compose")) as compose:
        yield compose


@pytest.fixture(scope="module")
def any_compose(bench_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """One of them, where they can't differ."""
    name = next(name for name, command in COMPOSES.items() if not missing(command))
    with up(name, tmp_path_factory.mktemp("compose")) as compose:
        yield compose


@dataclass(frozen=True)
class Job:
    """`docker compose run --rm bench`, and a folder for its results."""

    compose: Compose
    folder: Path

    def __call__(self, *arguments: str, alone: bool = False, **settings: str) -> Result:
        more = ("--no-deps",) if alone else ()
        said = self.compose.run(
            *("run", "--rm", "-T", *more, "bench", *arguments),
            within_s=LIMIT_S - 20,
            **({"BENCH_RESULTS": str(self.folder)} | settings),
        )
        return Result(said.status, said.out, said.err, self.folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new folder, of a user who is not root."""
    folder = tmp_path / "results"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, SOMEBODY, SOMEBODY)
    return folder


@pytest.fixture
def job(compose: Compose, folder: Path) -> Job:
    """A job of each Compose."""
    return Job(compose, folder)


@pytest.mark.timeout(LIMIT_S, func_only=True)
@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "quick"),
        ("--mode", "normal", "--iterations", "130", "--duration", "5", "--warmup", "1"),
        ("--mode", "stress", "--iterations", "200", "--duration", "5", "--warmup", "1"),
        ("--mode", "endurance", "--duration", "8", "--warmup", "1"),
    ],
    ids=lambda options: options[1],
)
def test_every_mode_measures_the_real_server(
    any_compose: Compose, folder: Path, options: tuple[str, ...]
) -> None:
    result = Job(any_compose, folder)(*options)
    assert result.status in (0, 1), result.err  # 1 where the machine is busy
    codes = {each["code"] for each in result.summary["verdict"]["reasons"]}
    assert codes <= CLIENT_REASONS | MACHINE_REASONS, codes
    assert (result.status == 0) == (not codes)
    level = result.level
    assert level["ok"] == level["requests"] >= 20
    assert level["stages_ms"]["inference"]["mean"] > 0
    assert "person" in level["predictions"]["classes"]
    assert result.summary["system"]["server_rss_mb"]["mean"] > 50
    assert result.summary["bottleneck"]
    assert result.summary["target"]["local"] is True
    assert "VERDICT: " in result.out


def test_the_results_belong_to_whoever_owns_the_folder(job: Job) -> None:
    result = job("--iterations", "20", "--warmup", "0", "--no-calibration")
    assert result.status in (0, 1), result.err
    names = {path.name.rpartition("_2")[0]: path for path in job.folder.iterdir()}
    assert {"benchmark_results", "system_metrics", "benchmark_summary", "benchmark_report"} <= set(
        names
    )
    owners = {path.stat().st_uid for path in names.values()}
    assert owners == {job.folder.stat().st_uid}


def test_its_exit_status_is_passed_on(job: Job) -> None:
    assert job("--lunch", alone=True).status == 2
    nobody = job("--url", "http://127.0.0.1:1", alone=True)
    assert nobody.status == 4
    assert "no server answers at http://127.0.0.1:1" in nobody.err + nobody.out


def test_it_sees_pictures_of_ones_own(job: Job, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "cat.png").write_bytes(CAT.read_bytes())
    result = job("--image", "pictures", "--iterations", "5", "--warmup", "0",
                 BENCH_PICTURES=str(pictures))  # fmt: skip
    assert {row.image for row in result.measured} == {"cat.png"}
    assert result.level["predictions"]["classes"] == {"cat": 5}


def test_it_is_not_started_with_the_service(compose: Compose) -> None:
    label = "com.docker.compose"
    running = told("ps", "--all", "--filter", f"label={label}.project={compose.project}",
                   "--format", f'{{{{.Label "{label}.service"}}}}')  # fmt: skip
    assert running == "reef"


def test_the_servers_image_has_nothing_of_it(image: str, bench_image: str) -> None:
    look = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in {}))"
    heavy = ["matplotlib", "pandas", "seaborn", "httptools"]
    python = ("--entrypoint", "/opt/reef/venv/bin/python")
    assert once("-c", look.format(heavy), options=python).status == 0
    assert docker("run", "--rm", "--entrypoint", "ls", image, "/opt/bench").status != 0
    here = told("run", "--rm", "--entrypoint", "ls", bench_image, "/opt/bench/venv/lib/python3.13"
                "/site-packages")  # fmt: skip
    assert set(heavy) <= set(here.split())


def test_its_image_has_no_tools_and_no_server(bench_image: str) -> None:
    here = told("run", "--rm", "--entrypoint", "ls", bench_image, "/opt/bench", "/opt/bench/app")
    assert "__init__.py" in here
    assert "service.py" not in here
    for tool in ("pip3", "gcc", "curl"):
        assert docker("run", "--rm", "--entrypoint", tool, bench_image, "--version").status == 127
