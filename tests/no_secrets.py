"""A pytest plugin: the run fails when a password is printed, logged, warned of or told by an error anywhere.

Every password that the tests use holds SENTINEL, so that one word is looked for: in all log records from DEBUG on,
whatever is captured or read from a program, warnings, and the messages of errors, raised or expected. Lines of source
in a traceback do not count. What is found is told with the test and the place, masked.
"""

from __future__ import annotations

import asyncio.subprocess
import logging
import subprocess
import traceback
import warnings
from collections.abc import Generator
from typing import Any

import pytest

SENTINEL = "s3cr3t"

_BEFORE = "between tests"


def messages_of(error: BaseException | None) -> str:
    """Return the messages of the error and of all that it came from, without any source."""
    if error is None:
        return ""
    whole = traceback.TracebackException.from_exception(error, lookup_lines=False)
    texts: list[str] = []
    left = [whole]
    while left:
        one = left.pop()
        texts += one.format_exception_only()
        left += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        left += getattr(one, "exceptions", None) or ()
    return "".join(texts)


class NoSecrets(logging.Handler):
    """Looks at everything a run tells; as a handler of the root logger at its log, too."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self.n_looked_at = 0
        self.test = _BEFORE
        self._patch = pytest.MonkeyPatch()

    def look(self, place: str, text: object, test: str = "") -> None:
        """Note the place when the text holds the secret."""
        self.n_looked_at += 1
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        at = shown.find(SENTINEL)
        if at >= 0:
            around = shown[max(at - 60, 0) : at + 60].replace(SENTINEL, "***")
            self.found.append(f"{test or self.test}: {place}: {around!r}".replace(SENTINEL, "***"))

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record's message, its error, and the values it was made of."""
        self.look(f"log of {record.name}", record.getMessage())
        if record.exc_info:
            self.look(f"error in the log of {record.name}", messages_of(record.exc_info[1]))

    def start(self) -> None:
        """Listen: to the log, to what pytest.raises catches, to what programs print."""
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.DEBUG)
        fill, communicate = pytest.ExceptionInfo.fill_unfilled, subprocess.Popen.communicate
        read, receive = pytest.CaptureFixture.readouterr, asyncio.subprocess.Process.communicate

        def filled(info: Any, caught: Any) -> None:
            fill(info, caught)
            self.look("error that was expected", messages_of(caught[1]))

        def read_out(fixture: Any) -> Any:
            told = read(fixture)
            self._look_at_both(told)
            return told

        def communicated(process: Any, *args: Any, **kwargs: Any) -> Any:
            told = communicate(process, *args, **kwargs)
            self._look_at_both(told)
            return told

        async def received(process: Any, *args: Any, **kwargs: Any) -> Any:
            told = await receive(process, *args, **kwargs)
            self._look_at_both(told)
            return told

        self._patch.setattr(pytest.ExceptionInfo, "fill_unfilled", filled)
        self._patch.setattr(pytest.CaptureFixture, "readouterr", read_out)
        self._patch.setattr(subprocess.Popen, "communicate", communicated)
        self._patch.setattr(asyncio.subprocess.Process, "communicate", received)
        self._listen_to_click()

    def _listen_to_click(self) -> None:
        try:
            from click.testing import CliRunner
        except ModuleNotFoundError:
            return
        invoke = CliRunner.invoke

        def invoked(runner: Any, *args: Any, **kwargs: Any) -> Any:
            result = invoke(runner, *args, **kwargs)
            self.look("what a command prints", result.output)
            self.look("error of a command", messages_of(result.exception))
            return result

        self._patch.setattr(CliRunner, "invoke", invoked)

    def _look_at_both(self, told: Any) -> None:
        for name, text in zip(("stdout", "stderr"), told, strict=True):
            self.look(name, text)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Know the test that runs."""
        self.test = item.nodeid
        try:
            return (yield)
        finally:
            self.test = _BEFORE

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Look at what a phase of a test captured, and at the error that ended it."""
        report: Any = yield
        for name, text in report.sections:
            self.look(name, text)
        if call.excinfo is not None:
            self.look("error of the test", messages_of(call.excinfo.value))
        return report

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, nodeid: str) -> None:
        """Look at a warning."""
        self.look("warning", warning_message.message, nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Make the run fail."""
        logging.getLogger().removeHandler(self)
        self._patch.undo()
        if self.found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where."""
        if self.found:
            terminalreporter.section("secrets were told", red=True)
            for line in self.found:
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Start; what caplog sees stays what a root logger at WARNING lets through, unless a test asks for more."""
    if not config.pluginmanager.has_plugin("no_secrets_watch"):
        config.option.log_level = config.option.log_level or "WARNING"
        watch = NoSecrets()
        config.pluginmanager.register(watch, "no_secrets_watch")
        watch.start()
