"""Devices are found in /proc and /sys; here, in copies of these trees."""

import math
import os
import re
from pathlib import Path

import pytest

from app.devices import discovery
from app.devices.discovery import available_cores, cpu_name, discover

ALLOWED = len(os.sched_getaffinity(0))

CGROUP_V2 = "sys/fs/cgroup/cpu.max"
V1_QUOTA, V1_PERIOD = (f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us" for name in ("quota", "period"))
CPUINFO, BOARD = "proc/cpuinfo", "proc/device-tree/model"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


QUOTAS: dict[str, tuple[dict[str, str], float]] = {
    # what the kernel shows, and the cores that it stands for
    "no cgroup at all": ({}, math.inf),
    "v2 without a quota": ({CGROUP_V2: "max 100000\n"}, math.inf),
    "v2, half a core": ({CGROUP_V2: "50000 100000\n"}, 1),
    "v2, one core": ({CGROUP_V2: "100000 100000\n"}, 1),
    "v2, one core and a half": ({CGROUP_V2: "150000 100000\n"}, 2),
    "v2, a thousandth": ({CGROUP_V2: "100 100000\n"}, 1),
    "v2, a thousand": ({CGROUP_V2: "100000000 100000\n"}, 1000),
    "v2, another period": ({CGROUP_V2: "20000 10000\n"}, 2),
    "v2, empty": ({CGROUP_V2: "\n"}, math.inf),
    "v1 without a quota": ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, math.inf),
    "v1, half a core": ({V1_QUOTA: "50000\n", V1_PERIOD: "100000\n"}, 1),
    "v1, one core": ({V1_QUOTA: "100000\n", V1_PERIOD: "100000\n"}, 1),
    "v1 without its period": ({V1_QUOTA: "100000\n"}, math.inf),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_a_containers_cpu_quota_is_rounded_up_and_never_above_the_affinity(
    name: str, tmp_path: Path
) -> None:
    files, cores = QUOTAS[name]
    assert available_cores(tree(tmp_path, files)) == min(cores, ALLOWED)


CPU_NAMES: dict[str, tuple[dict[str, str], str]] = {
    "a PC": (
        {CPUINFO: "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t: fpu\n"},
        "Intel(R) N100",
    ),
    "a colon in its name": ({CPUINFO: "model name\t: ACME: Fast\n"}, "ACME: Fast"),
    "a Raspberry Pi": (
        {CPUINFO: "processor\t: 0\nBogoMIPS\t: 108.00\n", BOARD: "Raspberry Pi 5 Model B\0"},
        "Raspberry Pi 5 Model B",
    ),
    "neither": ({CPUINFO: "processor\t: 0\n"}, os.uname().machine),
    "an empty board name": ({BOARD: ""}, os.uname().machine),
    "no /proc": ({}, os.uname().machine),
}


@pytest.mark.parametrize("name", CPU_NAMES)
def test_the_processor_is_called_what_its_maker_calls_it(name: str, tmp_path: Path) -> None:
    files, called = CPU_NAMES[name]
    assert cpu_name(tree(tmp_path, files)) == called


def test_the_cpu_is_a_device_and_says_what_it_is(tmp_path: Path) -> None:
    tree(tmp_path, {CPUINFO: "model name : Some CPU\n", CGROUP_V2: "100000 100000"})
    (device,) = discover("here-5000", root=tmp_path)
    assert (device.id, device.kind, device.threads) == ("cpu", "cpu", 1)
    assert device.about == "Some CPU, 1 of 1 cores"


def test_threads_that_are_asked_for_are_given(tmp_path: Path) -> None:
    assert discover("here-5000", cpu_threads=3, root=tmp_path)[0].threads == 3


def test_no_more_threads_than_are_useful_are_taken(tmp_path: Path) -> None:
    (device,) = discover("here-5000", root=tmp_path)
    assert device.threads == min(ALLOWED, discovery.MAX_USEFUL_THREADS)


def test_servers_at_different_ports_share_the_cpu() -> None:
    assert discover("here-5000")[0].lock != discover("here-5001")[0].lock


def test_this_host_has_a_processor_with_a_name() -> None:
    assert re.fullmatch(r"\S.*, \d+ of \d+ cores", discover("here-5000")[0].about)
