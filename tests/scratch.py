"""Servers of a test's own: where the binaries are, whom they may run as, when they are up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def find_binary(name: str) -> Path | None:
    """Return the newest of Debian's servers' binaries, or what is on the path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    return places[-1] if places else Path(found) if found else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hand_over(folder: Path, uid: int) -> None:
    """Give the folder and what is in it to the user who runs the server."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, -1)


@contextmanager
def running(command: Sequence[str | Path], uid: int, port: int, log: Path) -> Iterator[None]:
    """Run a server in the foreground until it takes connections; end it at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=output,
            cwd=log.parent,
            user=uid if os.geteuid() == 0 else None,
        )
        try:
            _wait_until_up(process, port, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} is not up:\n{log.read_text('utf-8', 'replace')}") from None
            time.sleep(0.05)


def wait_until_ready(data: Path) -> None:
    """Wait until the PostgreSQL of the folder lets clients in; its port is open before that."""
    deadline = time.monotonic() + 30
    while (data / "postmaster.pid").read_text("utf-8").split("\n")[-2].strip() not in ("ready", "standby"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server on {data} does not get ready")
        time.sleep(0.05)
