"""A virtual machine under QEMU, and a line to the agent in it."""

import base64
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY_MIB = 1536
LEFT_ALONE = "mem=1472M"
"""The kernel takes no more, so that the virtual card's registers can be in the rest. It keeps away
from what is left of the last 64 MiB, so this is a multiple of them."""

BOOT_S = 600
"""Emulated, on a busy machine; a minute is usual."""


@dataclass(frozen=True)
class Said:
    """How a command in the machine ended, and what it said."""

    status: int
    text: str


class Machine:
    """Started with the constructor. Nothing is written to its image: what changes goes with it."""

    def __init__(self, image: Path, files: Path, folder: Path) -> None:
        """`files` is an archive, which the machine sees as its disk /dev/vdb."""
        self.console = folder / "console.log"
        socket_path = folder / "agent"
        # A /dev/kvm may be there and not work, so it is for those who know theirs.
        kvm = os.environ.get("VM_ACCEL") == "kvm"
        # One processor when emulated: with two, a kernel that patches itself was seen to stumble
        # over its own breakpoint (int3 in the scheduler, when Docker set a quota).
        cores = "2" if kvm else "1"
        command = [
            *("qemu-system-x86_64", "-machine", "q35", "-m", str(MEMORY_MIB), "-smp", cores),
            *(("-accel", "kvm", "-cpu", "host") if kvm else ("-accel", "tcg", "-cpu", "Nehalem")),
            *("-nodefaults", "-display", "none", "-serial", f"file:{self.console}"),
            *("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")),
            *("-append", f"root=/dev/vda rw console=ttyS0 mitigations=off quiet {LEFT_ALONE}"),
            *("-drive", f"file={image / 'root.img'},format=raw,if=virtio,snapshot=on"),
            *("-drive", f"file={files},format=raw,if=virtio,readonly=on"),
            *("-device", "virtio-serial", "-chardev"),
            *(f"socket,id=agent,path={socket_path},server=on,wait=off",),
            *("-device", "virtserialport,chardev=agent,name=reef.agent"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._line: socket.socket | None = None
        self._count = 0
        self._received = b""
        try:
            self._line = self._connect(socket_path)
            self.wait_for_boot("")
        except BaseException:
            self.stop()
            raise

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(path))
            except OSError:
                line.close()
                assert self._process.poll() is None, "QEMU ended at once"
                assert time.monotonic() < deadline, "QEMU gives no line to the machine"
                time.sleep(0.1)
            else:
                return line

    def run(self, command: str, within_s: float = 120) -> Said:
        """Run a command in the machine; whatever comes of it."""
        name = self._send(command)
        deadline = time.monotonic() + within_s
        while True:
            answer = self._receive(deadline)
            assert answer is not None, f"no answer within {within_s:g} s to {command!r}{self}"
            found, status, *text = answer.split()
            if found == name:
                return Said(int(status), base64.b64decode("".join(text)).decode(errors="replace"))

    def __call__(self, command: str, within_s: float = 120) -> str:
        """What a command says; fails the test when it fails."""
        said = self.run(command, within_s)
        assert said.status == 0, f"{command}: {said.status}\n{said.text}"
        return said.text.strip()

    def __str__(self) -> str:
        """The end of its console, for the message of a failed test."""
        return "\n" + "\n".join(self.console.read_text(errors="replace").splitlines()[-15:])

    def wait_until(self, command: str, within_s: float = 180) -> None:
        """Until a command ends with status 0."""
        deadline = time.monotonic() + within_s
        while (said := self.run(command)).status != 0:
            assert time.monotonic() < deadline, f"it did not happen: {command}\n{said.text}"
            time.sleep(0.5)

    def wait_for_boot(self, before: str) -> None:
        """Until it answers, with another boot's id than `before`, and has come up."""
        deadline = time.monotonic() + BOOT_S
        while True:
            name = self._send("cat /proc/sys/kernel/random/boot_id")
            until = time.monotonic() + 5
            while (answer := self._receive(until)) is not None:
                found, _, *text = answer.split()
                if found == name and base64.b64decode("".join(text)).decode() != before:
                    self.run("systemctl is-system-running --wait", BOOT_S)
                    return
            assert time.monotonic() < deadline, f"it does not start{self}"

    def reboot(self) -> None:
        """Start it again; its disk stays as it is."""
        before = self.run("cat /proc/sys/kernel/random/boot_id").text
        self._send("sync; systemctl --no-block reboot")  # which may end before it could answer
        self.wait_for_boot(before)

    def _send(self, command: str) -> str:
        self._count += 1
        name = f"c{self._count}"
        assert self._line
        self._line.sendall(f"\n{name} {base64.b64encode(command.encode()).decode()}\n".encode())
        return name

    def _receive(self, deadline: float) -> str | None:
        """The next line; None when there is none before the deadline."""
        assert self._line
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._line.settimeout(left)
            try:
                got = self._line.recv(65536)
            except TimeoutError:
                return None
            assert got, f"the machine has ended{self}"
            self._received += got
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def stop(self) -> None:
        """End it, as by pulling the plug."""
        if self._line:
            self._line.close()
        self._process.kill()
        self._process.wait()
