"""The environment first, then the YAML file, then the default; and words for what is wrong."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app import settings
from app.errors import SettingsError
from app.settings import Settings
from tests.support import make_settings

FIELDS = Settings.model_fields


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: a developer's own reef.yaml must not matter."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(environ: dict[str, str] | None = None) -> str:
    """The line with which this environment is refused."""
    with pytest.raises(SettingsError) as caught:
        settings.load(environ or {})
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_status == 2
    return line


def test_without_environment_and_file_the_defaults_of_the_design_hold() -> None:
    told = settings.load({})
    assert (told.port, told.deadline_s, told.queue) == (5000, 10.0, 32)
    assert (told.min_score, told.max_results, told.max_upload_mib) == (0.4, 100, 16)
    assert told.max_upload_bytes == 16 * 1024 * 1024


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(folder: Path) -> None:
    (folder / "reef.yaml").write_text("port: 6000\nqueue: 7\n")
    told = settings.load({"REEF_PORT": "7000"})
    assert (told.port, told.queue, told.max_results) == (7000, 7, 100)


def test_reef_config_names_another_file(folder: Path) -> None:
    (folder / "reef.yaml").write_text("port: 6000")
    (folder / "other.yaml").write_text("port: 6001")
    assert settings.load({"REEF_CONFIG": str(folder / "other.yaml")}).port == 6001


def test_a_missing_file_named_by_reef_config_is_an_error() -> None:
    assert refusal({"REEF_CONFIG": "gone.yaml"}).startswith("REEF_CONFIG: no such file 'gone.yaml'")


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_empty_variable_counts_as_unset(name: str, folder: Path) -> None:
    (folder / "reef.yaml").write_text("port: 6000")
    told = settings.load({settings.variable(name): ""})
    assert told == make_settings(port=6000)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "null", "{}"])
def test_an_empty_file_changes_nothing(text: str, folder: Path) -> None:
    (folder / "reef.yaml").write_text(text)
    assert settings.load({}) == make_settings()


def test_variables_of_other_programs_are_none_of_our_business() -> None:
    environ = {"PATH": "/bin", "PORT": "x", "REEFER": "y", "LOG_LEVELS": "z"}
    assert settings.load(environ) == make_settings()


GOOD = [
    ({"REEF_HOST": "0.0.0.0"}, "host", "0.0.0.0"),
    ({"REEF_PORT": "65535"}, "port", 65535),
    ({"REEF_MIN_SCORE": "1e-1"}, "min_score", 0.1),
    ({"REEF_MIN_SCORE": "0"}, "min_score", 0.0),
    ({"REEF_DEADLINE_S": "0.5"}, "deadline_s", 0.5),
    ({"REEF_ONLY_LABELS": "person"}, "only_labels", ("person",)),
    ({"REEF_ONLY_LABELS": " person , traffic light,"}, "only_labels", ("person", "traffic light")),
    ({"REEF_EXTRA_MODELS": "a.tflite,b"}, "extra_models", ("a.tflite", "b")),
    ({"REEF_MODELS_DIR": "/models"}, "models_dir", Path("/models")),
    ({"REEF_LABELS": "/labels.txt"}, "labels", Path("/labels.txt")),
    ({"LOG_LEVEL": "WARNING"}, "log_level", "warning"),
    ({"REEF_LOG_FORMAT": "JSON"}, "log_format", "json"),
]


@pytest.mark.parametrize(("environ", "name", "value"), GOOD)
def test_a_good_value_is_taken(environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(settings.load(environ), name) == value


def test_lists_may_be_yaml_lists(folder: Path) -> None:
    (folder / "reef.yaml").write_text("only_labels: [person, traffic light]")
    assert settings.load({}).only_labels == ("person", "traffic light")


UNKNOWN = [
    ({"REEF_PROT": "1"}, "REEF_PROT: no such setting; did you mean REEF_PORT?"),
    ({"REEF_MODEL_DIR": "/m"}, "REEF_MODEL_DIR: no such setting; did you mean REEF_MODELS_DIR?"),
    ({"REEF_LOG_LEVEL": "info"}, "REEF_LOG_LEVEL: no such setting; did you mean LOG_LEVEL?"),
    ({"REEF_MINSCORE": ""}, "REEF_MINSCORE: no such setting; did you mean REEF_MIN_SCORE?"),
    ({"REEF_ZZZZZZ": "1"}, "REEF_ZZZZZZ: no such setting; docs/reference.md lists them"),
    ({"REEF_THRESHOLD": "1"}, "REEF_THRESHOLD: no such setting; docs/reference.md lists them"),
]


@pytest.mark.parametrize(("environ", "line"), UNKNOWN)
def test_an_unknown_variable_is_refused_with_a_suggestion(
    environ: dict[str, str], line: str
) -> None:
    assert refusal(environ) == line


def test_an_unknown_name_in_the_file_is_refused_with_a_suggestion(folder: Path) -> None:
    (folder / "reef.yaml").write_text("port: 6000\nmin_scores: 0.5")
    assert refusal() == "reef.yaml: no such setting 'min_scores'; did you mean min_score?"


WHOLE_NUMBERS = {"port": (1, 65535), "cpu_threads": (0, 64), "max_results": (1, 1000),
                 "queue": (1, 256), "max_upload_mib": (1, 256),
                 "client_requests": (0, 256)}  # fmt: skip
NUMBERS = {"min_score": (0, 1), "deadline_s": (0, 300), "max_megapixels": (0, 44),
           "drain_s": (0, 300), "client_rate": (0, 10_000),
           "restart_backoff_max_s": (0, 3600)}  # fmt: skip
NOT_A_NUMBER = ("abc", "1,5", "0x10", "--1", "1 2", "\u0665", "5\n6", "nan", "inf", "-inf", "1e999")

BAD = [
    *((name, text) for name in WHOLE_NUMBERS for text in (*NOT_A_NUMBER, "1.5")),
    *((name, text) for name in NUMBERS for text in NOT_A_NUMBER),
    *((name, str(low - 1)) for name, (low, _) in (WHOLE_NUMBERS | NUMBERS).items()),
    *((name, str(high + 1)) for name, (_, high) in (WHOLE_NUMBERS | NUMBERS).items()),
    *((name, "loud") for name in ("log_level", "log_format")),
    *((name, "0") for name in ("deadline_s", "max_megapixels")),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_names_the_setting_and_what_it_takes(name: str, text: str) -> None:
    line = refusal({settings.variable(name): text})
    assert line.startswith(f"{settings.variable(name)}: takes {settings.takes(FIELDS[name])}, not ")
    assert line.endswith(repr(text))


def test_every_number_is_tried_by_the_test_above() -> None:
    assert {*WHOLE_NUMBERS, *NUMBERS} == {
        name for name, field in FIELDS.items() if field.annotation in (int, float)
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("port", "a whole number from 1 to 65535"),
        ("min_score", "a number from 0 to 1"),
        ("deadline_s", "a number above 0, up to 300 s"),
        ("max_upload_mib", "a whole number from 1 to 256 MiB"),
        ("max_megapixels", "a number above 0, up to 44 MP"),
        ("host", "text"),
        ("models_dir", "a path"),
        ("labels", "a path"),
        ("only_labels", "names, with commas between"),
        ("log_level", "debug, info, warning or error"),
        ("api_key", "16 to 256 visible ASCII characters"),
        ("open_routes", "any of devices, metrics, models, with commas between"),
    ],
)
def test_what_a_setting_takes_is_told_in_words(name: str, words: str) -> None:
    assert settings.takes(FIELDS[name]) == words


BAD_FILES = [
    (b"port: abc", "reef.yaml: port: takes a whole number from 1 to 65535, not 'abc'"),
    (b"host: 5", "reef.yaml: host: takes text, not '5'"),
    (b"labels: 5", "reef.yaml: labels: takes a path, not '5'"),
    (b"only_labels: {a: b}", "reef.yaml: only_labels: takes names, with commas between, not "),
    (b"- port: 5", "reef.yaml: must hold lines of the form 'setting: value'"),
    (b"just words", "reef.yaml: must hold lines of the form 'setting: value'"),
    (b"1: 2", "reef.yaml: no such setting '1'"),
    (b"port: [", "reef.yaml: can't be read: "),
    (b"\xff\xfe\0", "reef.yaml: can't be read: "),
]


@pytest.mark.parametrize(("text", "beginning"), BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(text: bytes, beginning: str, folder: Path) -> None:
    (folder / "reef.yaml").write_bytes(text)
    assert refusal().startswith(beginning)


def test_a_value_from_the_environment_is_blamed_on_the_environment(folder: Path) -> None:
    (folder / "reef.yaml").write_text("port: 6000")
    assert refusal({"REEF_PORT": "abc"}).startswith("REEF_PORT: takes ")


def test_a_long_bad_value_is_not_repeated_at_length() -> None:
    assert len(refusal({"REEF_PORT": "9" * 10_000})) < 200


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_settings().port = 1


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_setting_has_a_help_text_that_is_a_sentence(name: str) -> None:
    assert re.fullmatch(r"\S.*\.", FIELDS[name].description or "")


def test_every_wrong_setting_is_told_at_once(folder: Path) -> None:
    (folder / "reef.yaml").write_text("queue: many\nquue: 7\nmin_score: 0.5")
    with pytest.raises(SettingsError) as caught:
        settings.load({"REEF_PORT": "x", "REEF_PROT": "1", "REEF_API_KEY": "short"})
    beginnings = [problem.partition(" ")[0] for problem in caught.value.problems]
    assert sorted(beginnings) == [
        *("REEF_API_KEY:", "REEF_PORT:", "REEF_PROT:", "reef.yaml:", "reef.yaml:")
    ]


def test_a_list_with_several_wrong_items_is_one_problem() -> None:
    refusal({"REEF_OPEN_ROUTES": "predict,health"})


def test_what_is_right_beside_what_is_wrong_is_still_read(folder: Path) -> None:
    (folder / "reef.yaml").write_text("queue: 7")
    reading = settings.read({"REEF_PORT": "x", "REEF_MIN_SCORE": "0.5"})
    assert (reading.settings.min_score, reading.settings.queue) == (0.5, 7)
    assert reading.wrong == {"port"}
    assert len(reading.problems) == 1


# ---------------------------------------------------------------------------- platforms

SERVICES = {
    "a Service of one port": {
        "REEF_PORT": "tcp://10.96.12.7:5000",
        "REEF_SERVICE_HOST": "10.96.12.7",
        "REEF_SERVICE_PORT": "5000",
        "REEF_SERVICE_PORT_HTTP": "5000",
        "REEF_PORT_5000_TCP": "tcp://10.96.12.7:5000",
        "REEF_PORT_5000_TCP_ADDR": "10.96.12.7",
        "REEF_PORT_5000_TCP_PORT": "5000",
        "REEF_PORT_5000_TCP_PROTO": "tcp",
    },
    "another Service, of several named ports": {
        "REEF_METRICS_2_SERVICE_HOST": "10.0.0.1",
        "REEF_METRICS_2_SERVICE_PORT": "80",
        "REEF_METRICS_2_SERVICE_PORT_WEB_TLS": "443",
        "REEF_METRICS_2_PORT": "tcp://10.0.0.1:80",
        "REEF_METRICS_2_PORT_443_TCP": "tcp://10.0.0.1:443",
    },
    "UDP and SCTP": {
        "REEF_DNS_PORT": "udp://10.0.0.1:53",
        "REEF_DNS_PORT_53_UDP": "udp://10.0.0.1:53",
        "REEF_DNS_PORT_53_UDP_PROTO": "udp",
        "REEF_DNS_PORT_53_UDP_PORT": "53",
        "REEF_DNS_PORT_53_UDP_ADDR": "10.0.0.1",
        "REEF_DNS_PORT_9_SCTP_PROTO": "sctp",
    },
    "IPv6": {
        "REEF_SERVICE_HOST": "fd00:10:96::c",
        "REEF_PORT": "tcp://[fd00:10:96::c]:5000",
        "REEF_PORT_5000_TCP_ADDR": "fd00:10:96::c",
    },
}


@pytest.mark.parametrize("name", SERVICES)
def test_what_kubernetes_tells_of_a_service_is_no_setting(name: str) -> None:
    assert settings.load(SERVICES[name]) == make_settings()
    assert settings.names_of_services({"PATH": "/bin", **SERVICES[name]}) == sorted(SERVICES[name])


def test_settings_beside_what_kubernetes_tells_are_taken() -> None:
    told = settings.load({**SERVICES["a Service of one port"], "REEF_QUEUE": "7"})
    assert (told.queue, told.port) == (7, 5000)
    assert settings.load({"REEF_PORT": "5001"}).port == 5001
    assert settings.names_of_services({"REEF_PORT": "5001", "REEF_QUEUE": "7"}) == []


def test_what_is_for_the_container_stops_no_server_and_is_told() -> None:
    shell = {"REEF_IMAGE": "reef:local", "REEF_BIND": "0.0.0.0", "REEF_QUEUE": "7"}
    assert settings.load(shell).queue == 7
    assert settings.names_of_the_container(shell) == ["REEF_BIND", "REEF_IMAGE"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REEF_PORT", "tcp://reef:5000"),
        ("REEF_PORT", "http://10.96.12.7:5000"),
        ("REEF_PORT", "tcp://10.96.12.7"),
        ("REEF_PORTS", "tcp://10.96.12.7:5000"),
        ("REEF_SERVICE_HOST", "reef.home"),
        ("REEF_SERVICE_PORT", "five"),
        ("REEF_QUEUE", "tcp://10.96.12.7:5000"),
        ("REEF_PORT_5000_TCP_PROTO", "icmp"),
        ("REEF_CAMERA_PORT", "5000"),
        ("REEF_PORT_TCP", "tcp://10.96.12.7:5000"),
    ],
)
def test_what_only_resembles_that_is_refused_as_ever(name: str, value: str) -> None:
    assert refusal({name: value}).startswith(f"{name}: ")


WRAPPED = [
    ("REEF_PORT", "6000\r"),
    ("REEF_PORT", '"6000"'),
    ("REEF_PORT", "'6000'\r"),
    ("REEF_PORT", ' " 6000 " '),
    ("REEF_PORT", "\ufeff6000"),
    ("\ufeffREEF_PORT", "6000\r"),
]


@pytest.mark.parametrize(("name", "value"), WRAPPED)
def test_what_a_file_from_windows_leaves_around_a_value_is_taken_off(name: str, value: str) -> None:
    assert settings.load({name: value}).port == 6000


def test_a_name_with_a_byte_order_mark_is_still_held_to_the_list() -> None:
    assert refusal({"\ufeffREEF_PROT": "1"}).startswith("REEF_PROT: no such setting")


def test_of_two_variables_the_one_that_is_written_right_counts() -> None:
    assert settings.load({"\ufeffREEF_PORT": "6000", "REEF_PORT": "7000"}).port == 7000


def test_quotes_within_a_value_stay() -> None:
    told = settings.load({"REEF_ONLY_LABELS": '"door","gate"', "REEF_MODEL": "it's"})
    assert (told.only_labels, told.model) == (('"door"', '"gate"'), "it's")


@pytest.mark.parametrize("value", ["\r", '""', "''\r", "  "])
def test_a_value_of_nothing_but_wrapping_is_unset(value: str) -> None:
    assert settings.load({"REEF_PORT": value}) == make_settings()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("camera.lan", False),
    ],
)
def test_an_address_of_this_computer_alone_is_known_as_that(host: str, loopback: bool) -> None:
    assert make_settings(host=host).loopback_only is loopback


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5000"),
        ("0.0.0.0", "http://127.0.0.1:5000"),
        ("::", "http://127.0.0.1:5000"),
        ("::1", "http://[::1]:5000"),
        ("camera.lan", "http://camera.lan:5000"),
    ],
)
def test_the_local_address_is_one_that_this_host_can_reach(host: str, url: str) -> None:
    assert make_settings(host=host).local_url == url


@pytest.mark.parametrize("text", ["port: yes", "min_score: on", "queue: true"])
def test_yaml_truth_is_no_number(folder: Path, text: str) -> None:
    (folder / "reef.yaml").write_text(text)
    assert refusal({}).startswith(f"reef.yaml: {text.split(':')[0]}: takes a")


def test_a_yaml_setting_without_a_value_is_unset(folder: Path) -> None:
    (folder / "reef.yaml").write_text("model:\nport: 6000\n")
    told = settings.load({})
    assert (told.model, told.port) == ("", 6000)


KEY = "0123456789abcdef"


def test_a_key_is_taken_and_shown_nowhere() -> None:
    told = settings.load({"REEF_API_KEY": KEY})
    assert told.keys == (KEY,)
    assert KEY not in f"{told!r} {told} {told.model_dump_json()}"


@pytest.mark.parametrize("key", ["short", KEY[:15], "with a blank in it", "gr\xfcn" * 8, "x" * 257])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused_and_not_shown(key: str) -> None:
    said = refusal({"REEF_API_KEY": key})
    assert said.startswith("REEF_API_KEY: takes 16 to 256 visible ASCII characters")
    assert key not in said


def test_a_file_may_have_several_keys(folder: Path) -> None:
    (folder / "keys").write_text(f"{KEY}\n\n  {KEY[::-1]}  \n")
    assert settings.load({"REEF_API_KEY_FILE": "keys"}).keys == (KEY, KEY[::-1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must hold a key a line"),
        (b"\n \n", "must hold a key a line"),
        (b"0123456789abcdef\nshort\n", "must hold a key a line"),
        (b"gr\xc3\xbcn" * 8, "can't be read: it is not ASCII"),
    ],
)
def test_a_file_without_keys_stops_the_start(content: bytes, words: str, folder: Path) -> None:
    (folder / "keys").write_bytes(content)
    said = refusal({"REEF_API_KEY_FILE": "keys"})
    assert said.startswith(f"REEF_API_KEY_FILE: 'keys' {words}")
    assert "short" not in said


def test_a_missing_file_of_keys_stops_the_start() -> None:
    said = refusal({"REEF_API_KEY_FILE": "gone"})
    assert said.startswith("REEF_API_KEY_FILE: 'gone' can't be read: No such file or directory;")


def test_a_key_and_a_file_of_keys_are_one_too_many(folder: Path) -> None:
    (folder / "keys").write_text(KEY)
    assert "set one of them" in refusal({"REEF_API_KEY": KEY, "REEF_API_KEY_FILE": "keys"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REEF_OPEN_ROUTES", "metrics,predict"),
        ("REEF_PROXIES", "caddy"),
        ("REEF_PROXIES", "10.0.0.1/8/8"),
        ("REEF_CORS_ORIGINS", "home.example"),
        ("REEF_CORS_ORIGINS", "https://home.example/"),
        ("REEF_CORS_ORIGINS", "https://*.example,ftp://x"),
    ],
)
def test_a_list_of_something_else_is_refused(variable: str, text: str) -> None:
    assert refusal({variable: text}).startswith(f"{variable}: takes ")


@pytest.mark.parametrize(
    ("said", "meant"), [("on", "on"), ("off", "off"), ("yes", "on"), ("false", "off")]
)
def test_a_switch_in_the_file_may_be_what_yaml_takes_for_true_or_false(
    tmp_path: Path, said: str, meant: str
) -> None:
    config = tmp_path / "reef.yaml"
    config.write_text(f"cpu_fallback: {said}\n")
    assert settings.load({"REEF_CONFIG": str(config)}).cpu_fallback == meant


def test_a_switch_is_on_or_off() -> None:
    assert settings.load({"REEF_CPU_FALLBACK": "OFF"}).cpu_fallback == "off"
    with pytest.raises(SettingsError, match="REEF_CPU_FALLBACK: takes on or off, not 'maybe'"):
        settings.load({"REEF_CPU_FALLBACK": "maybe"})
