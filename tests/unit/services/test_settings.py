"""Settings that cannot work are refused, by name, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.__main__ import main, read_settings
from services.assembler.settings import AssemblerSettings
from services.controller.settings import ControllerSettings
from services.mapper.settings import MapperSettings
from services.options import make_parser
from services.runtime.access import AccessSettings
from services.runtime.admission import AdmissionSettings
from services.runtime.settings import ChannelSettings, ServerSettings, SettingsError
from services.runtime.tracing import TracingSettings
from services.sessions.address import parse_address
from services.sessions.settings import SessionSettings
from services.settings import ServeSettings, parse_targets
from services.versions import VersionSettings

NAN = float("nan")


def _assembler(tmp, mapper):
    return ServeSettings(tmp, ("assembler",), mapper=mapper)


def _asking():
    return ServerSettings(access=AccessSettings(tokens=Path(__file__)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: ServerSettings(listen="0.0.0.0:1"), "--allow-insecure"),
        (lambda _: ServerSettings(listen="[::]:1"), "--allow-insecure"),
        (lambda _: ServerSettings(listen="50051"), "HOST:PORT"),
        (lambda _: ServerSettings(listen="127.0.0.1:99999"), "HOST:PORT"),
        (lambda tmp: ServerSettings(tls_cert=tmp / "a.pem"), "belong together"),
        (lambda tmp: ServerSettings(tls_cert=tmp / "a", tls_key=tmp / "b"), "no file"),
        (lambda _: ServerSettings(max_concurrent_requests=0), "max_concurrent_requests"),
        (lambda _: ServerSettings(drain_seconds=-1), "drain_seconds"),
        (lambda _: ServerSettings(drain_delay=NAN), "drain_delay"),
        (lambda _: ServerSettings(tls_client_ca=Path(__file__)), "needs tls_cert"),
        (lambda _: ServerSettings(tls_client_names=("a",)), "needs tls_client_ca"),
        (lambda _: AdmissionSettings(calm_concurrent=0), "calm_concurrent"),
        (lambda _: AdmissionSettings(download_rate=NAN), "download_rate"),
        (lambda _: AdmissionSettings(max_seconds=0), "max_seconds"),
        (lambda tmp: AccessSettings(tokens=tmp / "t"), "no file"),
        (lambda _: AccessSettings(jwt_keys=Path(__file__)), "--jwt-audience"),
        (lambda _: AccessSettings(jwt_scope="x"), "--jwt-keys"),
        (lambda _: AccessSettings(device_rate=-1), "device_rate"),
        (lambda _: TracingSettings(endpoint="127.0.0.1:4317"), "URL"),
        (lambda _: TracingSettings(ratio=2), "ratio"),
        (lambda _: ChannelSettings(cert=Path(__file__)), "belong together"),
        (lambda _: ChannelSettings(cert=Path(__file__), key=Path(__file__)), "--upstream-ca"),
        (lambda tmp: ChannelSettings(ca=tmp / "ca.pem"), "no file"),
        (lambda _: SessionSettings(url="mysql://x"), "redis://"),
        (lambda _: SessionSettings(ttl_seconds=0), "ttl_seconds"),
        (lambda _: SessionSettings(ttl_seconds=NAN), "ttl_seconds"),
        (lambda _: SessionSettings(ttl_seconds=1e30), "at most a year"),
        (lambda _: SessionSettings(url="redis://"), "redis://HOST:PORT/DB"),
        (lambda _: SessionSettings(url="redis://host:port/0"), "redis://HOST:PORT/DB"),
        (lambda _: SessionSettings(url="redis://host:1/first"), "redis://HOST:PORT/DB"),
        (lambda _: SessionSettings(url="unix://"), "unix://PATH"),
        (lambda _: MapperSettings(workers=0), "workers"),
        (lambda _: ControllerSettings(candidates=0), "candidates"),
        (lambda _: ControllerSettings(retry_min_ms=9, retry_max_ms=8), "retry_min_ms"),
        (lambda _: ControllerSettings(network_ttl_seconds=2**32), "at most"),
        (lambda _: ControllerSettings(retry_max_ms=2**32), "at most"),
        (lambda _: AssemblerSettings(mapper_seconds=NAN), "mapper_seconds"),
        (lambda _: ServerSettings(drain_seconds=NAN), "drain_seconds"),
        (lambda _: VersionSettings(poll_seconds=NAN), "poll_seconds"),
        (lambda _: VersionSettings(label="../x"), "no label"),
        (lambda _: VersionSettings(keep=0), "keep"),
        (lambda tmp: ServeSettings(registry=tmp / "nowhere"), "publish a version first"),
        (lambda tmp: ServeSettings(tmp, ("controller",)), "--assembler"),
        (lambda tmp: ServeSettings(tmp, ("assembler",)), "--mapper"),
        (lambda tmp: ServeSettings(tmp, mapper="127.0.0.1:1"), "would not be used"),
        (lambda tmp: ServeSettings(tmp, ("mapper",), assembler="127.0.0.1:1"), "not be used"),
        (lambda tmp: ServeSettings(tmp, ("assembler",), mapper="10.0.0.1:1"), "--upstream-ca"),
        (lambda tmp: _assembler(tmp, "127.0.0.1:1,10.0.0.1:1"), "--upstream-ca"),
        (lambda tmp: _assembler(tmp, "127.0.0.1:1,"), "HOST:PORT"),
        (lambda tmp: _assembler(tmp, "localhost:1,localhost:2"), "list is of IP addresses"),
        (lambda tmp: _assembler(tmp, "127.0.0.1:1,[::1]:1"), "all IPv4 or all IPv6"),
        (lambda tmp: _assembler(tmp, "dns:///a:1,b:1"), "use dns:///NAME:PORT"),
        (lambda _: ChannelSettings(attempt_seconds=0), "attempt_seconds"),
        (lambda _: ChannelSettings(attempt_seconds=NAN), "attempt_seconds"),
        (lambda tmp: ServeSettings(tmp, metrics="nine"), "metrics"),
        (lambda tmp: ServeSettings(tmp, ready_file=tmp / "no" / "r.json"), "no folder"),
        (
            lambda tmp: ServeSettings(tmp, server=_asking(), expose_internal=True),
            "--tls-client-ca",
        ),
        (lambda _: parse_targets("controller,mapr"), "mapr"),
        (lambda _: parse_targets("mapper,mapper"), "each once"),
    ],
)
def test_refused(tmp_path, make, says):
    with pytest.raises(SettingsError, match=says):
        make(tmp_path)


def test_targets():
    assert set(parse_targets("all")) == {"controller", "assembler", "mapper"}
    assert parse_targets("mapper, assembler") == ("mapper", "assembler")


def test_several_addresses(tmp_path):
    _assembler(tmp_path, "127.0.0.1:1,127.0.0.1:2")
    _assembler(tmp_path, "[::1]:1,[::1]:2")


def test_a_mesh_may_do_without_tls(tmp_path):
    channels = ChannelSettings(allow_insecure=True)
    ServeSettings(tmp_path, ("assembler",), mapper="dns:///mapper:1", channels=channels)
    ServerSettings(listen="0.0.0.0:1", allow_insecure=True)


def test_celerys_spelling_of_a_socket():
    address = parse_address("redis+socket:///run/redis.sock?virtual_host=3")
    assert address.url == "unix:///run/redis.sock?db=3"


def test_the_command_line_has_the_defaults_of_the_classes(tmp_path):
    settings, level = read_settings(["--registry", str(tmp_path)])
    assert settings == ServeSettings(registry=tmp_path)
    assert level == "INFO"


def test_every_flag_is_read(tmp_path):
    """Each flag, set to something else, changes the settings."""
    default, _ = read_settings(["--registry", str(tmp_path)])
    pem = tmp_path / "x.pem"
    pem.write_text("")
    ca = ["--tls-client-ca", str(pem)]
    upstream = [
        "--upstream-ca",
        *[str(pem), "--upstream-cert", str(pem), "--upstream-key"],
        str(pem),
    ]
    jwt = [str(pem), "--jwt-issuer", "i", "--jwt-audience", "a"]
    training = ["--target", "trainer", "--broker"]
    texts = {
        "--target": ["--target", "mapper"],
        "--mapper": ["--target", "assembler", "--mapper", "127.0.0.1:7"],
        "--assembler": ["--target", "controller", "--assembler", "127.0.0.1:7"],
        "--listen": ["--listen", "127.0.0.1:7"],
        "--metrics": ["--metrics", "127.0.0.1:7"],
        "--sessions": ["--sessions", "redis://h:1/0"],
        "--session-timeout": ["--session-timeout", "0.5"],
        "--label": ["--label", "canary"],
        "--canary-label": ["--canary-label", ""],
        "--tls-cert": ["--tls-cert", str(pem), "--tls-key", str(pem)],
        "--tls-key": ["--tls-cert", str(pem), "--tls-key", str(pem)],
        "--tls-client-ca": [*("--tls-cert", str(pem), "--tls-key", str(pem)), *ca],
        "--tls-client-names": [
            *("--tls-cert", str(pem), "--tls-key", str(pem)),
            *ca,
            "--tls-client-names",
            "a,b",
        ],
        "--upstream-ca": ["--upstream-ca", str(pem)],
        "--upstream-cert": upstream,
        "--upstream-key": upstream,
        "--expose-internal": ["--expose-internal"],
        "--no-reflection": ["--no-reflection"],
        "--tokens": ["--tokens", str(pem)],
        "--jwt-keys": ["--jwt-keys", *jwt],
        "--jwt-secret": ["--jwt-secret", *jwt],
        "--jwt-issuer": ["--jwt-keys", *jwt],
        "--jwt-audience": ["--jwt-keys", *jwt],
        "--jwt-scope": ["--jwt-keys", *jwt, "--jwt-scope", "networks"],
        "--otlp-endpoint": ["--otlp-endpoint", "http://127.0.0.1:4317"],
        "--trace-ratio": ["--trace-ratio", "0.5"],
        "--ready-file": ["--ready-file", str(pem)],
        "--allow-insecure": ["--allow-insecure"],
        "--retry-min-ms": ["--retry-min-ms", "5"],
        "--log-level": ["--log-level", "DEBUG"],
        "--mapper-precision": ["--mapper-precision", "bfloat16"],
        "--share-port": ["--share-port"],
        "--broker": [*training, "redis://h:1/0"],
        "--home": [*training, "redis://h:1/0", "--home", "elsewhere"],
        "--max-unread-bytes": ["--max-unread-bytes", str(2**20)],
    }
    for action in make_parser()._actions:
        flag = action.option_strings[-1]
        if flag in ("--help", "--registry"):
            continue
        text = texts.get(flag, [flag, "4321"])
        changed, level = read_settings(["--registry", str(tmp_path), *text])
        assert changed != default or level != "INFO", flag


def test_bad_settings_end_with_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["services", "--registry", str(tmp_path / "none")])
    assert main() == 2
    assert "publish a version first" in capsys.readouterr().err


def test_a_password_is_not_shown():
    with pytest.raises(SettingsError) as caught:
        SessionSettings(url="redis://:secret@host:port/0")
    assert "secret" not in str(caught.value)
