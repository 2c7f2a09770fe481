"""Configuration: which source wins, what is refused by name, and that the password shows nowhere."""

from __future__ import annotations

import logging
import pickle
import re
import ssl
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgtick import config as config_module
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.errors import ConfigError

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
SECRET = "s3cr3t@/#?%: '\"\\päß"
REQUIRED = {"POSTGRES_HOST": "h", "POSTGRES_DB": "d", "POSTGRES_USER": "u"}
SAMPLES: dict[str, tuple[str, Any, str, Any]] = {
    "host": ("one", "one", "two", "two"),
    "port": ("1", 1, "2", 2),
    "database": ("one", "one", "two", "two"),
    "user": ("one", "one", "two", "two"),
    "password": ("one", "one", "two", "two"),
    "passfile": ("/one", "/one", "/two", "/two"),
    "sslmode": ("require", "require", "disable", "disable"),
    "sslrootcert": ("/one", "/one", "/two", "/two"),
    "target_session_attrs": ("primary", "primary", "standby", "standby"),
    "connect_timeout_s": ("1.5", 1.5, "2", 2.0),
    "acquire_timeout_s": ("1.5", 1.5, "2", 2.0),
    "statement_timeout_s": ("1.5", 1.5, "2", 2.0),
    "min_connections": ("0", 0, "2", 2),
    "max_connections": ("7", 7, "8", 8),
    "pooler": ("on", True, "False", False),
    "listen": ("no", False, "YES", True),
    "engine": ("plain", "plain", "timescale", "timescale"),
    "migration_folders": ("/a:/b", ("/a", "/b"), "/c", ("/c",)),
    "maintenance_interval_s": ("0", 0.0, "60", 60.0),
    "migration_wait_s": ("1.5", 1.5, "2", 2.0),
    "migration_lock_timeout_s": ("1.5", 1.5, "2", 2.0),
    "migration_statement_timeout_s": ("1.5", 1.5, "2", 2.0),
    "verify": ("off", "off", "refuse", "refuse"),
}
VARIABLES = [(field, names) for field, names in config_module._VARIABLES.items()]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(env_file: Path | None = None, /, **environ: str) -> DatabaseConfig:
    return HftConfig(env_file, environ={**environ}).get_database_config()


def remote(**settings: Any) -> DatabaseConfig:
    return DatabaseConfig(**{"host": "db.example.com", "database": "d", "user": "u", **settings})


def test_every_field_has_a_variable_and_a_sample() -> None:
    assert set(config_module._VARIABLES) == set(DatabaseConfig.__struct_fields__) == set(SAMPLES)


def test_every_variable_is_documented_with_its_field() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`[A-Z_`, ]+`) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert {field: tuple(re.findall(r"\w+", names)) for field, names in rows} == config_module._VARIABLES


def test_documented_defaults_are_the_struct_s() -> None:
    text = DOCUMENT.read_text("utf-8")
    for field in msgspec.structs.fields(DatabaseConfig):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert re.search(rf"^\| `{field.name}` \|.*\| {field.default:g}\b", text, re.MULTILINE), field.name


@pytest.mark.parametrize(("field", "names"), VARIABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_variable_alone_is_taken_and_the_first_of_two_wins(field: str, names: tuple[str, ...]) -> None:
    text, value, other_text, other = SAMPLES[field]
    for name in names:
        assert getattr(read(**{n: v for n, v in REQUIRED.items() if n not in names}, **{name: text}), field) == value
    if len(names) == 2:
        both = {**REQUIRED, names[0]: text, names[1]: other_text}
        assert getattr(read(**both), field) == value
    assert getattr(read(**{**REQUIRED, names[0]: other_text}), field) == other


@pytest.mark.parametrize(("field", "names"), VARIABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_variable_set_and_empty_is_named(field: str, names: tuple[str, ...]) -> None:
    for name in names:
        settings = {n: v for n, v in REQUIRED.items() if n not in names}
        with pytest.raises(ConfigError, match="is set and empty") as caught:
            read(**settings, **{name: ""})
        assert caught.value.setting == name


@pytest.mark.parametrize("name", ["POSTGRES_HOST", "POSTGRES_DB", "POSTGRES_USER"])
def test_variable_that_is_missing_is_named_with_its_twin(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not set \(nor PG") as caught:
        read(**{n: v for n, v in REQUIRED.items() if n != name})
    assert caught.value.setting == name


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("POSTGRES_PORT", "54x", "whole number"),
        ("PGPORT", "70000", "between 1 and 65535"),
        ("POSTGRES_PORT", "9" * 5000, "whole number"),
        ("POSTGRES_MAX_CONNECTIONS", "2.5", "whole number"),
        ("POSTGRES_MAX_CONNECTIONS", "0", "> 0"),
        ("POSTGRES_MIN_CONNECTIONS", "-1", ">= 0"),
        ("POSTGRES_MIN_CONNECTIONS", "6", r"<= max_connections \(5\)"),
        ("PGCONNECT_TIMEOUT", "soon", "number of seconds"),
        ("PGCONNECT_TIMEOUT", "0", "> 0"),
        ("POSTGRES_ACQUIRE_TIMEOUT", "nan", "finite"),
        ("POSTGRES_STATEMENT_TIMEOUT", "inf", "finite"),
        ("POSTGRES_STATEMENT_TIMEOUT", "-1", "> 0"),
        ("POSTGRES_MAINTENANCE_INTERVAL", "-1", ">= 0"),
        ("POSTGRES_POOLER", "maybe", "true"),
        ("POSTGRES_ENGINE", "oracle", "auto, plain"),
        ("PGSSLMODE", "prefer", "unencrypted"),
        ("POSTGRES_SSLMODE", "allow", "unencrypted"),
        ("PGTICK_DSN", "", "is set and empty"),
        ("PGTICK_DSN", "mysql://u@h/d", "must begin with"),
        ("PGTICK_DSN", "postgresql://u@h:x/d", "port is not a number"),
    ],
)
def test_variable_that_is_malformed_is_named_with_the_rule(name: str, text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        read(**{**REQUIRED, name: text})
    assert caught.value.setting == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", "5432"),
        ("port", True),
        ("max_connections", 2.0),
        ("acquire_timeout_s", float("nan")),
        ("connect_timeout_s", float("inf")),
        ("statement_timeout_s", -0.1),
        ("maintenance_interval_s", float("inf")),
        ("host", None),
        ("host", ""),
        ("password", ""),
        ("password", b"bytes"),
        ("password", "a\0b"),
        ("password", "a\ud800b"),
        ("sslmode", ""),
    ],
)
def test_field_that_does_not_fit_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        remote(**{field: value})
    assert caught.value.setting == field


def test_dsn_wins_over_variables_which_fill_what_it_leaves_out() -> None:
    given = {**REQUIRED, "POSTGRES_PASSWORD": "p", "POSTGRES_PORT": "99", "POSTGRES_POOLER": "1"}
    config = read(**given, PGTICK_DSN="postgresql://other@elsewhere/market?sslmode=require")
    assert config == DatabaseConfig(
        host="elsewhere", database="market", user="other", password="p", port=99, pooler=True, sslmode="require"
    )
    assert read(PGTICK_DSN="postgresql://u@/d").host == "localhost"


def test_env_file_lies_under_the_environment_and_above_the_service(tmp_path: Path) -> None:
    services = tmp_path / "services"
    services.write_text("[market]\nhost=s\nport=3\nuser=s\ndbname=s\npassword=a:b=c # d\nkeepalives=1\n", "utf-8")
    (tmp_path / ".env").write_text(
        f"POSTGRES_HOST=file\nPGPORT=2\nPGSERVICE=market\nPGSERVICEFILE={services}\n", "utf-8"
    )
    config = read(PGHOST="environment")  # even the second name in the environment is above the file's first
    assert (config.host, config.port, config.user, config.database) == ("environment", 2, "s", "s")
    assert config.password == "a:b=c # d"
    assert read().host == "file"


def test_env_file_gives_passwords_as_they_stand(tmp_path: Path) -> None:
    other = tmp_path / "other.env"
    other.write_text("POSTGRES_HOST=h\nPGDATABASE=d\nPGUSER=u\nPOSTGRES_PASSWORD='p@/#${HOME} $x'\nEMPTY\n", "utf-8")
    assert read(other).password == "p@/#${HOME} $x"
    with pytest.raises(ConfigError, match="does not exist"):
        HftConfig(tmp_path / "none.env", environ={})
    other.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        HftConfig(other, environ={})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[other]\nhost=h\n", "is not in"),
        ("[market]\nport=x\n", "must be a whole number"),
        ("[market]\nhost=\n", "is set and empty"),
        ("[market]\ns3cr3t\n", "line 2"),
        ("[market]\npassword=s3cr3t\npassword=s3cr3t\n", "line 3"),
        ("s3cr3t=1\n", "line 1"),
    ],
)
def test_service_file_that_does_not_serve_is_named_and_not_quoted(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "services").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rule) as caught:
        read(PGSERVICE="market", PGSERVICEFILE=str(tmp_path / "services"))
    shown = "".join(traceback.format_exception(caught.value))
    assert str(tmp_path / "services") in str(caught.value)
    assert "s3cr3t" not in shown


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(password=texts, user=texts, database=texts)
@example(password="@/#?%: '\"\\", user="@/#?%: ", database="@/#?%: ")
@example(password="密码%20+&=", user="ü", database="市场")
def test_dsn_with_any_password_user_and_database_comes_back(password: str, user: str, database: str) -> None:
    config = DatabaseConfig(host="h", database=database, user=user, password=password)
    assert DatabaseConfig.from_dsn(config.to_dsn(with_password=True)) == config
    assert DatabaseConfig.from_dsn(config.to_dsn()) == msgspec.structs.replace(config, password=None)


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "::1", "fe80::1", "/run/post gres+&", "db.example.com"])
def test_dsn_with_any_kind_of_host_comes_back(host: str) -> None:
    config = DatabaseConfig(
        host=host, port=99, database="d", user="u", sslmode="verify-ca", sslrootcert="/a b+c", passfile="/p&q"
    )
    assert DatabaseConfig.from_dsn(config.to_dsn()) == config


@pytest.mark.parametrize("password", ["p@ss", "p/ss", "p#ss", "p:ss", "p ss", "p@/#:ss", "p+ss", "'\"\\"])
def test_dsn_with_a_raw_password_is_understood(password: str) -> None:
    config = DatabaseConfig.from_dsn(f"postgres://u:{password}@h:99/d?connect_timeout=3")
    assert (config.password, config.host, config.port, config.connect_timeout_s) == (password, "h", 99, 3.0)


def test_dsn_parameters_are_libpq_s() -> None:
    config = DatabaseConfig.from_dsn(
        "postgresql:///?host=/run/a+b&port=9&user=u&password=x%26y+z&dbname=d", engine="plain"
    )
    assert config == DatabaseConfig(host="/run/a+b", port=9, user="u", password="x&y+z", database="d", engine="plain")


@pytest.mark.parametrize(
    ("dsn", "rule"),
    [
        ("host=h", "must begin with"),
        ("postgresql://h/d", "names no user"),
        ("postgresql://u@h", "names no database"),
        ("postgresql://u@h/d?sslmode=", "is set and empty"),
        ("postgresql://u@h/d?sslmode=prefer", "unencrypted"),
        ("postgresql://u@h/d?application_name=x", "not one of"),
        ("postgresql://u:1?s3cr3t=x@h/d", "percent-encode"),
        ("postgresql://u:s3?cr3t@h:1/d", "percent-encode"),
        ("postgresql://u:s3cr3t", "port is not a number"),
        ("postgresql://u@h/d?s3cr3t", "not one of"),
    ],
)
def test_dsn_that_cannot_be_read_is_refused_without_a_word_of_it(dsn: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        DatabaseConfig.from_dsn(dsn)
    assert "cr3t" not in "".join(traceback.format_exception(caught.value))


def test_password_is_in_no_representation() -> None:
    config = remote(password=SECRET)
    assert config.connect_kwargs()["password"] == SECRET
    shown = [repr(config), str(config), f"{config}", f"{[config]}", config.to_dsn(), str(config.__rich_repr__())]
    rich = pytest.importorskip("rich.pretty")
    shown.append(rich.pretty_repr(config))
    for text in shown:
        assert "s3cr3t" not in text
        assert "db.example.com" in text
    assert pickle.loads(pickle.dumps(config)) == config


def test_password_is_in_no_log_while_a_configuration_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = read(**REQUIRED, POSTGRES_PASSWORD=SECRET)
    logging.getLogger("test").info("%r %s", config, config)
    assert "DatabaseConfig(" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("wrong", [{"POSTGRES_PORT": "x"}, {"POSTGRES_SSLMODE": "prefer"}, {"POSTGRES_POOLER": "x"}])
def test_password_is_in_no_error_of_a_configuration(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{**REQUIRED, "POSTGRES_PASSWORD": SECRET, **wrong})
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown
    assert "s3cr3t" not in repr(caught.value)


@pytest.mark.parametrize("host", ["/run/postgresql", "localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_local_host_has_no_tls_unless_asked(host: str) -> None:
    assert remote(host=host).connect_kwargs()["ssl"] is False
    if not host.startswith("/"):
        assert isinstance(remote(host=host, sslmode="require").connect_kwargs()["ssl"], ssl.SSLContext)


@pytest.mark.parametrize("host", ["db.example.com", "10.0.0.1", "192.168.1.1", "fe80::1", "localhost.example.com"])
def test_remote_host_gets_verified_tls_unless_switched_off_in_so_many_words(host: str) -> None:
    context = remote(host=host).connect_kwargs()["ssl"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert remote(host=host, sslmode="disable").connect_kwargs()["ssl"] is False


def test_sslmode_says_what_is_checked() -> None:
    require = remote(sslmode="require").connect_kwargs()["ssl"]
    assert (require.verify_mode, require.check_hostname) == (ssl.CERT_NONE, False)
    authority = remote(sslmode="verify-ca", sslrootcert="system").connect_kwargs()["ssl"]
    assert (authority.verify_mode, authority.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize("text", [None, "not a certificate"])
def test_sslrootcert_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "root.crt"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"root\.crt cannot be read"):
        remote(sslrootcert=str(path)).connect_kwargs()


def test_pooler_switches_the_statement_cache_off() -> None:
    assert remote().connect_kwargs()["statement_cache_size"] == 100
    assert remote(pooler=True).connect_kwargs()["statement_cache_size"] == 0


def test_password_file_that_is_not_utf8_is_named_without_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_bytes(b"*:*:*:*:s3cret\xff")
    file.chmod(0o600)
    config = DatabaseConfig(host="db.test", database="d", user="u", passfile=str(file), sslmode="disable")
    with pytest.raises(ConfigError, match=r"passfile: .* is not UTF-8") as caught:
        config.connect_kwargs()
    assert caught.value.__cause__ is None
    assert "s3cret" not in str(caught.value)
