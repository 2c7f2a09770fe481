"""``pgtick top`` against a real endpoint: one snapshot, the live view in a terminal, endpoints that are away."""

from __future__ import annotations

import fcntl
import http.server
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pgtick.adapters.prometheus import serve_metrics
from pgtick.cli import top as room
from pgtick.cli.commands import pgtick
from pgtick.cli.scraping import AwayError, History, endpoint_url, parse, scrape
from pgtick.writer.metrics import Metrics

LONGEST = "arbitrage_opportunities"


class Watched:
    """What has metrics, as a Writer has."""

    def __init__(self, n_stored: int = 1000) -> None:
        self.metrics = Metrics()
        self.metrics.max_bytes = 1000
        self.metrics.pool_state = lambda: {"size": 4, "idle": 1, "max": 5}
        for table in ("trade_snapshots", LONGEST):
            self.store(n_stored, table)

    def store(self, n_rows: int, table: str = "trade_snapshots", seconds: float = 0.0035) -> None:
        counts = self.metrics.counts_of(table)
        counts.n_accepted += n_rows
        counts.n_stored += n_rows
        self.metrics.observe_flush(table, seconds, n_rows)
        self.metrics.note_stored(table)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(pgtick, ["top", *arguments], env={"COLUMNS": "80"})


def exposed(watched: Watched) -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    from pgtick.adapters.prometheus import WriterCollector

    registry = CollectorRegistry()
    WriterCollector(watched, registry)
    return generate_latest(registry).decode()


def drawn(history: History, width: int = 80, **away: object) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(room._view("http://x/metrics", history, width, **away))  # type: ignore[arg-type]
    return capture.get()


def cells(text: str, table: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(table)]
    return line.split()[1:]


def test_top_once_of_a_writer_prints_a_line_a_table_within_80_columns() -> None:
    watched = Watched(12345)
    counts = watched.metrics.counts_of("trade_snapshots")
    counts.n_duplicates, counts.n_quarantined, counts.n_spooled, counts.n_buffered = 7, 3, 4567, 21
    watched.metrics.n_bytes_buffered = 420
    watched.metrics.spool_bytes, watched.metrics.max_spool_bytes = 50, 100
    with serve_metrics(watched, port=0) as served:
        result = run(served.url, "--once", "--interval", "0.1")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines()) <= 80
    assert "server up  pool 3 busy of 5" in result.output
    assert "buffer 42% of 1kB  spool 50% of 100B" in result.output
    told = cells(result.output, "trade_snapshots")
    assert told[:6] == ["0", "12.3k", "7", "3", "4.57k", "21"]
    assert LONGEST in result.output


def test_top_without_a_terminal_prints_one_snapshot_and_ends() -> None:
    with serve_metrics(Watched(), port=0) as served:
        ran = subprocess.run(
            [sys.executable, "-c", "from pgtick.cli import main; main()", "top", f"127.0.0.1:{served.port}"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert "trade_snapshots" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_top_once_without_an_endpoint_says_so_and_fails() -> None:
    with serve_metrics(Watched(), port=0) as served:
        pass
    result = run(served.url, "--once")
    assert result.exit_code == 1
    assert result.output == f"Error: {served.url}: Connection refused\n"


def test_top_with_what_is_no_url_is_refused() -> None:
    assert run("ftp://localhost/x").exit_code == 2
    assert run("localhost:notaport").exit_code == 2


def test_top_without_prometheus_client_says_which_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; from pgtick.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, "top", "--once"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "pip install 'pgtick[prometheus]'" in ran.stderr


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (None, "http://127.0.0.1:10977/metrics"),
        ("feed:9000", "http://feed:9000/metrics"),
        ("[::1]:9000", "http://[::1]:9000/metrics"),
        ("https://feed/", "https://feed/metrics"),
        ("http://feed:1/own/path", "http://feed:1/own/path"),
    ],
)
def test_endpoint_url_of_what_people_type_is_whole(text: str | None, url: str) -> None:
    assert endpoint_url(text) == url


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "it answers 404 Not Found"),
        (200, b"python_info 1\n", "it has no metrics of a pgtick writer"),
        (200, b"<html>no</html>", "it does not speak Prometheus' text format"),
        (200, b"\xff\xfe", "invalid start byte"),
    ],
)
def test_scrape_of_another_service_says_what_is_wrong(status: int, body: bytes, reason: str) -> None:
    with answering(status, body) as url, pytest.raises(AwayError, match=re.escape(reason)):
        scrape(url)


def test_history_of_two_scrapes_gives_rates_and_the_window_s_percentiles() -> None:
    watched, history = Watched(), History()
    for _ in range(100):
        watched.store(1, seconds=9.0)  # before the window
    first = parse(exposed(watched))
    for _ in range(10):
        watched.store(50, seconds=0.0035)
    second = parse(exposed(watched))
    second.at_s = first.at_s + 2.0
    history.add(first)
    (only,) = [view for view in history.tables() if view.table == "trade_snapshots"]
    assert only.rows_per_s is None
    assert only.p50_s is not None
    assert only.p50_s > 5
    history.add(second)
    (view,) = [view for view in history.tables() if view.table == "trade_snapshots"]
    assert view.rows_per_s == 250.0
    assert view.p99_s is not None
    assert 0.002 <= view.p99_s <= 0.005


def test_history_after_a_restart_counts_anew() -> None:
    history = History()
    before, after = parse(exposed(Watched(1000))), parse(exposed(Watched(10)))
    later = parse(exposed(Watched(30)))
    later.at_s = after.at_s + 1.0
    for taken in (before, after):
        history.add(taken)
    assert history.n_restarts == 1
    assert [view.rows_per_s for view in history.tables()] == [None, None]
    history.add(later)
    assert history.n_restarts == 1
    assert [view.rows_per_s for view in history.tables()] == [20.0, 20.0]


def test_history_of_a_buffer_that_empties_is_no_restart() -> None:
    watched, history = Watched(), History()
    watched.metrics.counts_of(LONGEST).n_buffered = 9
    history.add(parse(exposed(watched)))
    watched.metrics.counts_of(LONGEST).n_buffered = 0
    history.add(parse(exposed(watched)))
    assert history.n_restarts == 0


def test_view_of_a_writer_in_trouble_tells_it() -> None:
    watched, history = Watched(), History()
    watched.metrics.away_since_s = time.monotonic() - 130
    watched.metrics.lanes_stopped["trade_snapshots"] = "column gone"
    history.add(parse(exposed(watched)))
    text = drawn(history)
    assert "server away for 2min" in text
    assert "flushing is stopped by the schema: trade_snapshots\n" in text
    text = drawn(history, away="Connection refused", away_s=5.0)
    assert "away for 5.0s: Connection refused" in text
    assert LONGEST in text


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("n_rows", [0, 999, 999_999, 10**12])
def test_view_of_any_size_keeps_within_the_width_and_cuts_no_number(width: int, n_rows: int) -> None:
    watched, history = Watched(n_rows), History()
    watched.store(n_rows, "a_table_of_ones_own_with_a_name_of_the_longest_that_there_may_be_")
    for name in ("n_duplicates", "n_quarantined", "n_spooled", "n_buffered"):
        setattr(watched.metrics.counts_of("trade_snapshots"), name, n_rows)
    history.add(parse(exposed(watched)))
    text = drawn(history, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in "".join(cells(text, "trade_snapshots"))


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0µs"), (0.00012, "120µs"), (0.0015, "1.5ms"), (0.99, "990ms"), (1.0, "1.0s"), (59.6, "60s"),
     (150.0, "2min"), (7200.0, "2h"), (900_000.0, "10d"), (None, "")],
)  # fmt: skip
def test_seconds_of_any_length_are_short(value: float | None, told: str) -> None:
    assert room._seconds(value) == told
    assert len(told) <= 5


class Screen:
    """The command in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(TERM="xterm", COLUMNS="80", LINES="24")
            code = "from pgtick.cli import main; main()"
            os.execv(sys.executable, [sys.executable, "-c", code, "top", *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""

    def wait_for(self, pattern: str) -> None:
        """Read on until what was written since the last call matches."""
        until, self.text = time.monotonic() + 60, ""
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, self.text
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError as error:  # the terminal of an ended process
                    raise AssertionError(f"it ended: {self.text}") from error

    def end(self) -> int:
        """Press Ctrl-C and return the exit code."""
        os.write(self.fd, b"\x03")
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child does nothing but exec
def test_top_in_a_terminal_follows_the_endpoint_away_back_and_restarted() -> None:
    served = serve_metrics(Watched(1000), port=0)
    screen = Screen(served.url, "--interval", "0.1")
    screen.wait_for(r"trade_snapshots.* 1k ")
    served.close()
    screen.wait_for(r"away for \S+: Connection refused")
    served = serve_metrics(Watched(10), port=served.port)
    try:
        screen.wait_for(r"restarts seen: 1(.|\n)*trade_snapshots")
        assert screen.end() == 0
    finally:
        served.close()
