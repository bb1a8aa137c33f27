"""The stand-in libedgetpu itself: what it prints and gives, as TensorFlow Lite sees it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.standin import compiled_model
from tests.standin.host import LOADED, Host

ASK = """
import ctypes, json, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
library, device, level, model, idle_s, *reds = sys.argv[1:]
ctypes.CDLL(library).edgetpu_verbosity(int(level))
delegate = load_delegate(library, {"device": device})
interpreter = Interpreter(model, experimental_delegates=[delegate])
interpreter.allocate_tensors()
answers = []
for red in reds:
    tensor = np.full((1, 32, 32, 3), int(red), np.uint8)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensor)
    began = time.monotonic()
    interpreter.invoke()
    seconds = time.monotonic() - began
    outputs = [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]
    numbers = [np.nan_to_num(each, nan=99).tolist() for each in outputs]
    answers.append({"s": seconds, "outputs": numbers})
time.sleep(float(idle_s))
print(json.dumps(answers))
"""


class Library:
    """Asks the stand-in in a process of its own."""

    def __init__(self, host: Host, path: Path, model: Path) -> None:
        self.host, self._path, self._model = host, path, model

    def ask(
        self, *reds: int, device: str = "pci:0", verbosity: int = 0, idle_s: float = 0.0
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The answers for tensors of these reds, and the lines on stderr."""
        said = [self._path, device, verbosity, self._model, idle_s, *reds]
        ran = subprocess.run(
            [sys.executable, "-c", ASK, *map(str, said)], capture_output=True, text=True, timeout=60
        )
        answers = json.loads(ran.stdout) if ran.stdout else []
        lines = [line for line in ran.stderr.splitlines() if line[:2] in ("I ", "W ", "E ", "F ")]
        return answers, lines


@pytest.fixture
def library(host: Host, edgetpu_library: Path, tmp_path: Path) -> Library:
    """The stand-in, and a model whose outputs are finished detections."""
    model = compiled_model.write(tmp_path / "finished_edgetpu.tflite", finished=True)
    return Library(host, edgetpu_library, model)


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_stick_prints_a_line_for_each_chunk_of_output_at_level_one_only(
    library: Library, verbosity: int
) -> None:
    library.host.add_usb("2-1", LOADED)
    library.host.behave("2-1", "output_kib=190")
    _, lines = library.ask(1, device="usb:0", verbosity=verbosity)
    chunks = [line for line in lines if "bulk in 1024 bytes from buffer index" in line]
    assert len(chunks) == 190 * verbosity


@pytest.mark.parametrize("verbosity", [0, 1])
def test_an_idle_stick_prints_its_time_outs_at_level_one_only(
    library: Library, verbosity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USB_TIMEOUT_MILLIS", "100")
    library.host.add_usb("2-1", LOADED)
    _, lines = library.ask(1, device="usb:0", verbosity=verbosity, idle_s=0.5)
    assert any("USB transfer error 2" in line for line in lines) is bool(verbosity)
    assert sum("USB transfer error 3" in line for line in lines) == 10 * verbosity


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_card_prints_nothing_an_inference_and_its_registers_at_level_one(
    library: Library, verbosity: int
) -> None:
    library.host.add_pci()
    _, lines = library.ask(1, 2, 3, verbosity=verbosity)
    assert len(lines) == 7 * verbosity
    assert all("kernel_registers.cc" in line for line in lines)


def test_errors_are_printed_at_every_level(library: Library) -> None:
    library.host.add_pci()
    library.host.behave("apex_0", "create=off_bus")
    for verbosity in (0, 1):
        _, lines = library.ask(verbosity=verbosity)
        assert "hib_error_status = ffffffffffffffff" in lines[0]
        assert lines[0].startswith("E ")
        assert len(lines) == 1 + verbosity


def test_a_fault_may_come_at_every_nth_inference(library: Library) -> None:
    library.host.add_pci()
    library.host.behave("apex_0", "invoke=zeros every=3")
    answers, _ = library.ask(*range(1, 7))
    counts = [answer["outputs"][3] for answer in answers]
    assert counts == [[8.0], [8.0], [0.0]] * 2


def test_a_change_of_model_costs_a_reload(library: Library) -> None:
    library.host.add_pci()
    library.host.behave("apex_0", "latency_us=1000 reload_us=300000")
    first, second = library.ask(1, 2)[0]
    assert first["s"] > 0.3 > second["s"]


NONSENSE = {
    "nan": lambda outputs: outputs[3] == [99.0],
    "count": lambda outputs: outputs[3] == [-5.0],
    "score": lambda outputs: outputs[2][0][0] == 2.5,
    "zeros": lambda outputs: outputs[2][0] == [0.0] * 8,
}


@pytest.mark.parametrize("how", NONSENSE)
def test_nonsense_is_given(library: Library, how: str) -> None:
    library.host.add_pci()
    library.host.behave("apex_0", f"invoke={how}")
    ((answer,), _) = library.ask(1)
    assert NONSENSE[how](answer["outputs"])


def test_a_stale_answer_is_the_one_before(library: Library) -> None:
    library.host.add_pci()
    right = library.ask(1, 2)[0]
    library.host.behave("apex_0", "invoke=stale after=1")
    stale = library.ask(1, 2)[0]
    assert right[0]["outputs"] == stale[0]["outputs"] == stale[1]["outputs"]
    assert right[1]["outputs"] != right[0]["outputs"]


def test_a_behaviour_that_it_does_not_know_is_no_silent_success(library: Library) -> None:
    library.host.add_pci()
    library.host.behave("apex_0", "create=nonsense")
    assert "there is no behaviour `nonsense`" in library.ask()[1][0]
