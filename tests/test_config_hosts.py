"""Several hosts in a configuration: how they are written, what is refused, what is passed on."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtick.config import DatabaseConfig, HftConfig
from pgtick.errors import ConfigError


def of(host: str, port: Any = 5432, **settings: Any) -> DatabaseConfig:
    return DatabaseConfig(host=host, port=port, database="d", user="u", **settings)


def read(**environ: str) -> DatabaseConfig:
    return HftConfig(environ={"POSTGRES_DB": "d", "POSTGRES_USER": "u", **environ}).get_database_config()


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://u@a:1,b:2/d", (("a", 1), ("b", 2))),
        ("postgresql://u@a,b/d", (("a", 5432), ("b", 5432))),
        ("postgresql://u@a,b:2/d", (("a", 5432), ("b", 2))),
        ("postgresql://u@[::1]:1,[fe80::1],c/d", (("::1", 1), ("fe80::1", 5432), ("c", 5432))),
        ("postgresql://u@%2Frun%2Fpg:1,b:2/d", (("/run/pg", 1), ("b", 2))),
        ("postgresql:///d?user=u&host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("postgresql:///d?user=u&host=a,b&port=7", (("a", 7), ("b", 7))),
        ("postgresql://u:p,q@r@a:1,b:2/d", (("a", 1), ("b", 2))),
    ],
)
def test_dsn_with_several_hosts_is_libpq_s(dsn: str, hosts: tuple[tuple[str, int], ...]) -> None:
    config = DatabaseConfig.from_dsn(dsn)
    assert config.hosts == hosts
    assert DatabaseConfig.from_dsn(config.to_dsn(with_password=True)) == config


NAMES = st.sampled_from(["a", "db-1.example.com", "10.0.0.1", "::1", "fe80::1", "/run/post gres+&", "localhost"])
PLACES = st.lists(st.tuples(NAMES, st.integers(1, 65535)), min_size=1, max_size=5)


@given(places=PLACES, attrs=st.sampled_from([None, "any", "read-write", "prefer-standby"]))
def test_dsn_of_any_hosts_comes_back(places: list[tuple[str, int]], attrs: str | None) -> None:
    ports = [str(port) for _, port in places]
    config = of(
        ",".join(host for host, _ in places),
        ",".join(ports) if len(ports) > 1 else int(ports[0]),
        target_session_attrs=attrs,
    )
    assert config.hosts == tuple(places)
    assert DatabaseConfig.from_dsn(config.to_dsn()) == config


def test_ports_that_are_all_one_are_the_same_configuration_as_the_one() -> None:
    assert of("a,b", "7,7") == of("a,b", 7)
    assert hash(of("a,b", "7,7")) == hash(of("a,b", 7))


def test_environment_names_hosts_ports_and_what_the_server_must_be() -> None:
    config = read(POSTGRES_HOST="a,b", POSTGRES_PORT="1,2", PGTARGETSESSIONATTRS="prefer-standby")
    assert config.hosts == (("a", 1), ("b", 2))
    assert config.session_attrs == "prefer-standby"
    assert read(PGHOST="a,b", PGPORT="9").hosts == (("a", 9), ("b", 9))
    from_dsn = read(PGTICK_DSN="postgresql://x@a,b/d?target_session_attrs=primary", PGTARGETSESSIONATTRS="any")
    assert from_dsn.session_attrs == "primary"


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("POSTGRES_HOST", "h:5432", "the port is a setting of its own"),
        ("PGHOST", "a,h:5432", "the port is a setting of its own"),
        ("POSTGRES_HOST", "postgresql://u:s3cr3t@h/d", "the port is a setting of its own"),
        ("POSTGRES_HOST", "[::1]", "no IPv6 address"),
        ("POSTGRES_HOST", "a, b", "has a space"),
        ("POSTGRES_HOST", "u@h", "an @"),
        ("POSTGRES_HOST", "a,,b", "empty name"),
        ("POSTGRES_HOST", "a,", "empty name"),
        ("POSTGRES_PORT", "1,x", "whole numbers"),
        ("POSTGRES_PORT", "1,", "whole numbers"),
        ("POSTGRES_PORT", "1,70000", "between 1 and 65535"),
        ("POSTGRES_PORT", "1,2,3", "one for all hosts or one for each"),
        ("POSTGRES_TARGET_SESSION_ATTRS", "readwrite", "must be one of any, read-write"),
        ("PGTARGETSESSIONATTRS", "", "is set and empty"),
    ],
)
def test_variable_that_does_not_fit_is_named_and_not_quoted(name: str, text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        read(**{name: text} if name == "PGHOST" else {"POSTGRES_HOST": "a,b", name: text})
    assert caught.value.setting == name
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("port", ["5432", "1,2", (1, 2), [1], 1.0])
def test_port_of_one_host_is_one_number(port: object) -> None:
    with pytest.raises(ConfigError) as caught:
        of("h", port)
    assert caught.value.setting == "port"


@pytest.mark.parametrize(
    ("host", "given", "attrs"),
    [("a", None, "any"), ("a,b", None, "read-write"), ("a", "standby", "standby"), ("a,b", "any", "any")],
)
def test_server_must_take_writes_when_there_are_several(host: str, given: str | None, attrs: str) -> None:
    config = of(host, target_session_attrs=given)
    assert config.session_attrs == attrs
    assert config.connect_kwargs()["target_session_attrs"] == attrs
    assert {one.target_session_attrs for one in config.each_host()} == {attrs}


@pytest.mark.parametrize(
    ("host", "is_local"), [("localhost,/run", True), ("127.0.0.1,::1", True), ("localhost,b", False), ("b,/run", False)]
)
def test_hosts_are_local_when_all_are_and_tls_is_left_out_only_then(host: str, is_local: bool) -> None:
    config = of(host)
    assert config.is_local is is_local
    for one in config.each_host():
        context = one.connect_kwargs()["ssl"]
        if is_local or one.host.startswith("/"):
            assert context is False
        else:
            assert isinstance(context, ssl.SSLContext)
            assert context.check_hostname


@pytest.mark.skipif(os.name != "posix", reason="the mode of a file is Unix's")
def test_password_file_is_looked_up_for_each_host(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("a:1:*:u:first\nb:2:*:u:second\n", "utf-8")
    file.chmod(0o600)
    config = of("a,b,c", "1,2,1", passfile=str(file), sslmode="disable")
    assert [one.connect_kwargs().get("password") for one in config.each_host()] == ["first", "second", None]
