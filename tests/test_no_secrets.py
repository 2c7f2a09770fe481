"""The watch over secrets itself: a run in which one is told anywhere fails, and says where without telling it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from no_secrets import SENTINEL

TESTS = Path(__file__).parent
HEAD = """
import logging, subprocess, sys, warnings
import pytest
from no_secrets import SENTINEL
from pgtick.config import DatabaseConfig
from pgtick.errors import PgtickError

config = DatabaseConfig(host="h", database="d", user="u", password=SENTINEL)
PROGRAM = "from no_secrets import SENTINEL; print(SENTINEL)"

"""
LEAKS = {
    "printed": "print(config.password)",
    "to stderr": "print(config.to_dsn(with_password=True), file=sys.stderr)",
    "logged": "logging.getLogger('asyncpg').debug('connecting as %s', config.password)",
    "logged, in an error": """try:
        raise PgtickError(config.password)
    except PgtickError:
        logging.getLogger('pgtick').debug('failed', exc_info=True)""",
    "warned": "warnings.warn(config.password)",
    "in an expected error": "with pytest.raises(PgtickError): raise PgtickError(config.password)",
    "in the cause of one": """with pytest.raises(PgtickError):
        try:
            raise ValueError(config.password)
        except ValueError as error:
            raise PgtickError('hidden') from error""",
    "in one of a group": """with pytest.raises(ExceptionGroup):
        raise ExceptionGroup('several', [ValueError(1), ValueError(config.password)])""",
    "in a note": """with pytest.raises(PgtickError):
        error = PgtickError('x')
        error.add_note(config.password)
        raise error""",
    "read by the test": "print(config.password); capsys.readouterr()",
    "by a program": "subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, check=True)",
    "by a command": "click.testing.CliRunner().invoke(click.Command('x', callback=lambda: click.echo(SENTINEL)))",
}


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    test = folder / "test_planted.py"
    test.write_text(f"{HEAD}def test_planted(capsys):\n    import click, click.testing\n    {body}\n", "utf-8")
    # No summary of warnings, which would tell them.
    options = ["-p", "no_secrets", "-p", "no:cacheprovider", "-c", os.devnull, "--disable-warnings"]
    command = [sys.executable, "-m", "pytest", *options, str(test)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("leak", LEAKS)
def test_run_in_which_a_secret_is_told_fails_and_says_where(tmp_path: Path, leak: str) -> None:
    ran = run(tmp_path, LEAKS[leak])
    assert "1 passed" in ran.stdout, ran.stdout  # it is the run that fails
    assert ran.returncode == 1
    assert "secrets were told" in ran.stdout
    assert "test_planted.py::test_planted: " in ran.stdout
    assert "***" in ran.stdout


def test_run_in_which_none_is_told_passes(tmp_path: Path) -> None:
    told = "print(config, config.to_dsn()); logging.getLogger().debug('%r', config); assert config.password == SENTINEL"
    ran = run(tmp_path, told)
    assert ran.returncode == 0, ran.stdout
    assert "secrets were told" not in ran.stdout


def test_this_run_is_watched(pytestconfig: pytest.Config) -> None:
    watch = pytestconfig.pluginmanager.get_plugin("no_secrets_watch")
    assert watch is not None
    before = len(watch.found)
    watch.look("a place", f"x{SENTINEL}x")
    assert watch.found.pop().endswith(": a place: 'x***x'")
    assert len(watch.found) == before
