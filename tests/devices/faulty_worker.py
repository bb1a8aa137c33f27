"""A device process with faults: the real one, but for what a file says before each inference.

The file named by FAULT_FILE holds one word: `die` (as by the kernel), `abort`, `hang`, `chatter`
(hang, and write to stdout without end), `fail` (as TensorFlow Lite does), `nan`, or a number of
seconds that each inference takes longer. With `once` behind it, the fault is gone afterwards;
with a model's name, the other models do without it.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.devices import runtime, worker
from app.devices.link import ModelFile


class FaultyModel(runtime.LoadedModel):
    """A real model that does what the file says first."""

    def __init__(self, model: ModelFile, threads: int, delegate: Any = None) -> None:
        super().__init__(model, threads, delegate)
        self._name = model.name

    def invoke(self, tensor: NDArray[np.uint8], outputs: NDArray[np.float32]) -> None:
        """Misbehave, or infer."""
        file = Path(os.environ["FAULT_FILE"])
        fault, _, limit = file.read_text().partition(" ")
        if limit == "once":
            file.write_text("")
        elif limit not in ("", self._name):
            fault = ""
        match fault:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "abort":
                print("F the_driver.cc:1] transfer failed. Abort.", file=sys.stderr, flush=True)
                os.abort()
            case "hang":
                time.sleep(3600)
            case "chatter":
                while True:
                    with contextlib.suppress(BlockingIOError):  # the pipe is full
                        print("W the_driver.cc:1] still trying", flush=True)
            case "fail":
                raise RuntimeError("Node number 1 failed to invoke.")
            case "nan":
                outputs[:] = np.nan
                return
            case seconds:
                time.sleep(float(seconds or 0))
        super().invoke(tensor, outputs)


if __name__ == "__main__":
    runtime.LoadedModel = FaultyModel  # type: ignore[misc]
    sys.exit(worker.main(int(sys.argv[1]), int(sys.argv[2])))
