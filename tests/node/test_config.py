from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cli_config import meaning, toml
from node.config import (
    Config,
    ConfigError,
    environment,
    export,
    key_types,
    load,
    section_types,
    trace,
)
from node.values import bound


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "meridian.toml"


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_without_a_file_the_defaults_hold() -> None:
    config = load(None, {})
    assert config == msgspec.structs.replace(Config(), node=config.node)
    assert config.data == Path("data").absolute()


def test_the_file_goes_before_the_defaults_and_the_environment_before_the_file(file: Path) -> None:
    written(file, '[node]\nregion = "eu"\nname = "a"\n[limits]\nidle_seconds = 5\n')
    traced = trace(file, {"MERIDIAN_NODE_NAME": "b", "MERIDIAN_LIMITS_UPLOADS": "7"})
    assert (traced.config.node.region, traced.config.node.name) == ("eu", "b")
    assert (traced.config.limits.idle_seconds, traced.config.limits.uploads) == (5.0, 7)
    assert traced.origins["node.region"] == "file"
    assert traced.origins["node.name"] == "MERIDIAN_NODE_NAME"
    assert traced.origins["limits.page_size"] == "default"


def test_variables_are_converted_to_the_type_of_their_key() -> None:
    variables = {
        "MERIDIAN_LISTEN_ALLOW_REMOTE_OPEN": "true",
        "MERIDIAN_LISTEN_ADDRESS": "[::]:443",
        "MERIDIAN_TELEMETRY_TRACE_RATIO": "0.5",
        "MERIDIAN_TELEMETRY_LOG_LEVEL": "debug",
        "MERIDIAN_REGISTRY_DELETE_TAGS": "0",
    }
    config = load(None, variables)
    assert config.listen.allow_remote_open is True
    assert config.listen.address == "[::]:443"
    assert config.telemetry.trace_ratio == 0.5
    assert config.telemetry.log_level == "debug"
    assert config.registry.delete_tags is False


def test_variables_of_others_are_left_alone() -> None:
    others = {
        "MERIDIAN_DATA": "/x",
        "MERIDIAN_CONFIG": "/y",
        "PATH": "/bin",
        "MERIDIAN_NODE_SERVICE_HOST": "10.0.0.1",  # Kubernetes describes a service called meridian-node
        "MERIDIAN_NODE_PORT_5000_TCP": "tcp://10.0.0.1:5000",
    }
    assert load(None, others) == load(None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node", "not TOML"),
        ('region = "eu"', "[region]: no such section; known are node, listen"),
        ("[nodes]", "[nodes]: no such section"),
        ('[node]\nregon = "eu"', "[node] regon: no such key; known are region, name"),
        ('[node]\nregion = "EU"', "[node] region: expected text like [a-z][a-z0-9-]{0,31}, got 'EU'"),
        ('[node]\nregion = "eu\\n"', "[node] region: expected text like"),
        ('[node]\ngateways = "2"', "[node] gateways: expected a whole number at least 0 and at most 256, got '2'"),
        ('[node]\ndata = "a\\u0000b"', "[node] data: expected a path in UTF-8 without NUL"),
        ("[node]\ngateways = 257", "expected a whole number at least 0 and at most 256"),
        ("[supervisor]\ndrain_seconds = 30", "[supervisor] drain_seconds: expected a number above 0 and below 30"),
        ("[supervisor]\ndrain_seconds = nan", "[supervisor] drain_seconds: expected a number"),
        ("[limits]\nidle_seconds = inf", "[limits] idle_seconds: expected a number"),
        ('[access]\npolicy = "closed"', "[access] policy: expected one of open, got 'closed'"),
        ("[registry]\ndelete_tags = 1", "[registry] delete_tags: expected true or false, got 1"),
        ('[listen]\naddress = "5000"', "[listen] address: expected host:port, got '5000'"),
        ('[listen]\naddress = "127.0.0.1:70000"', "[listen] address: expected a port of at most 65535"),
        ('[listen]\nadmin = "127.0.0.1:5000"', "four different addresses"),
        ('[listen]\ntls_key = "k"', "tls_certificate and tls_key: expected both or neither"),
        ("[limits]\nurl_bytes = 40000", "[limits] url_bytes: expected at most header_bytes"),
        ("[supervisor]\nrestart_first_seconds = 20", "expected at most restart_most_seconds"),
        ("[log]\nkeep_bytes = 65536", "[log] segment_bytes: expected at most keep_bytes"),
        ('[listen]\naddress = "0.0.0.0:5000"', "can be reached from other machines and [access] policy is open"),
        ('[listen]\nadmin = "0.0.0.0:5100"', "admin: 0.0.0.0:5100 can be reached from other machines"),
        ('[telemetry]\notlp_endpoint = "collector"', "[telemetry] otlp_endpoint: expected text like"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(file, text), {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MERIDIAN_NODE_REGON", "eu", "MERIDIAN_NODE_REGON: no such key; known are region"),
        ("MERIDIAN_NODE_DATA", "a\udcffb", "MERIDIAN_NODE_DATA: expected text in UTF-8"),
        ("MERIDIAN_NODE_GATEWAYS", "many", "MERIDIAN_NODE_GATEWAYS: expected a whole number"),
        ("MERIDIAN_REGISTRY_DELETE_TAGS", "yes", "MERIDIAN_REGISTRY_DELETE_TAGS: expected true or false, got 'yes'"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {name: value})
    assert str(caught.value).startswith(message)


def test_a_folder_whose_name_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a\udcffb"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"\[node\] data: expected a path in UTF-8"):
        load(written(folder / "meridian.toml", "[node]"), {})


def test_a_file_that_is_not_there_or_not_text_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(file, {})
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not TOML"):
        load(file, {})


def test_relative_paths_count_from_the_folder_of_the_file(file: Path) -> None:
    written(file, '[node]\ndata = "x/../d"\n[listen]\ntls_certificate = "c.pem"\ntls_key = "/etc/k.pem"\n')
    config = load(file, {"MERIDIAN_NODE_RUNTIME": "run"})
    assert config.data == file.parent / "d"
    assert config.listen.tls_certificate == str(file.parent / "c.pem")
    assert config.listen.tls_key == "/etc/k.pem"
    assert config.node.runtime == str(file.parent / "run")


def test_an_open_node_goes_beyond_loopback_only_when_told_to(file: Path) -> None:
    config = load(written(file, '[listen]\naddress = "0.0.0.0:5000"\nallow_remote_open = true\n'), {})
    assert config.listen.address == "0.0.0.0:5000"


def cluster(*members: str) -> str:
    return f'[cluster]\nid = "{"c" * 32}"\nca = "a"\ncertificate = "b"\nkey = "k"\nmembers = {list(members)}\n'


def test_members_say_where_their_keepers_and_gateways_are(file: Path) -> None:
    members = cluster("node-1=127.0.0.1:5200", "eu=registry.example:7000/443", "ap=[::1]:1").replace("'", '"')
    config = load(written(file, members), {})
    assert config.cluster.addresses == {"node-1": "127.0.0.1:5200", "eu": "registry.example:7000", "ap": "[::1]:1"}
    transfers = {"node-1": "127.0.0.1:5300", "eu": "registry.example:443", "ap": "[::1]:101"}
    assert config.cluster.transfer_addresses == transfers


@pytest.mark.parametrize(
    "members",
    [
        ("node-1=a:1", "node-2=a:1/9"),
        ("node-1=a:1", "node-1=b:1"),
        ("node-1=a:1", "node-2=a:101"),
        ("node-1=a:1/5", "node-2=b:1/5", "node-3=a:2/5"),
        ("node-1=a:65500",),
        ("node-1=a:0",),
        ("node-1=a:1/70000",),
        ("node-2=a:1",),
        ("node-1=a:1/",),
        ("node-1=a",),
        ("=a:1",),
    ],
)
def test_members_that_cannot_be_are_refused(file: Path, members: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="members"):
        load(written(file, cluster(*members).replace("'", '"')), {})


def test_port_zero_may_be_named_more_than_once(file: Path) -> None:
    load(written(file, '[listen]\naddress = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\npeers = "127.0.0.1:0"\n'), {})


def test_every_key_says_what_it_means_and_accepts() -> None:
    for kind in section_types().values():
        assert kind.__doc__
        for expected in key_types(kind).values():
            assert meaning(expected)
            assert bound(expected)


KEYS = [(section, key) for section, kind in section_types().items() for key in key_types(kind)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KEYS), st.text() | st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.text()))
def test_any_value_is_taken_or_refused_by_name(place: tuple[str, str], value: Any) -> None:
    section, key = place
    text = toml(value) if isinstance(value, str | int | bool) else repr(value)
    try:
        document = tomllib.loads(f"[{section}]\n{key} = {text}\n")
    except tomllib.TOMLDecodeError:
        return
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        assert f"$.{section}.{key}" in str(error)  # noqa: PT017
    else:
        taken = getattr(getattr(config, section), key)
        assert (list(taken) if isinstance(taken, tuple) else taken) == document[section][key]


def test_the_environment_is_a_copy_and_exports_reach_it() -> None:
    name = "MERIDIAN_TEST_EXPORT"
    export(name, "1")
    try:
        assert environment()[name] == "1"
    finally:
        export(name, None)
    assert name not in environment()
