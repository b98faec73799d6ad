"""Settings: files, variables, secrets, and a line for each thing that is wrong with any of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from netsage_pipeline.config import Output, Settings, SettingsError, described, read, settings_of, shown
from tests.command import conf_with, run, run_real, stage_file


class Inner(BaseModel):
    country: str


class Config(Settings):
    """Every kind of setting."""

    timeout_s: float = Field(630, gt=0, description="How long")
    memory_bytes: int = Field(100, description="How much")
    names: list[str] = Field([], description="Which")
    by_sensor: dict[str, float] = Field({}, description="By sensor")
    rules: list[Inner] = Field([], description="Rules")
    file: Path = Field(Path("a.mmdb"), description="Where")
    key: SecretStr = Field(SecretStr("public"), min_length=1, description="What nobody may know")
    optional: SecretStr | None = Field(None, description="What need not be given")


class Needy(Settings):
    host: str = Field(description="Name of the machine")


def errors_of(path: Path, text: str, model: type[Settings] = Config, **environment: str) -> list[str]:
    """What is wrong with a file of that text, without the path in front."""
    path.write_text(text, "utf-8")
    config, errors = settings_of(model, read(path, environment))
    assert (config is None) == bool(errors)
    assert all(error.startswith(f"{path}: ") for error in errors)
    return [error.removeprefix(f"{path}: ") for error in errors]


def config_of(path: Path, text: str, **environment: str) -> Config:
    path.write_text(text, "utf-8")
    config, errors = settings_of(Config, read(path, environment))
    assert errors == []
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("timout_s = 5", "timout_s: unknown setting, did you mean 'timeout_s'?", id="a misspelt setting"),
        pytest.param("kee = 'x'", "kee: unknown setting, did you mean 'key'?", id="a misspelt secret"),
        pytest.param("key_fil = 'x'", "key_fil: unknown setting, did you mean 'key_file'?", id="a misspelt file of a secret"),
        pytest.param(
            "zzz = 5",
            "zzz: unknown setting, known are: enabled, timeout_s, memory_bytes, names, by_sensor, rules, file, key, optional, "
            "key_file, optional_file",
            id="a setting like no other",
        ),
        pytest.param("timeout_s = 'ten'", "timeout_s: 'ten' is not a number of seconds", id="a text as seconds"),
        pytest.param("timeout_s = [1]", "timeout_s: [1] is not a number of seconds", id="a list as seconds"),
        pytest.param("memory_bytes = 'much'", "memory_bytes: 'much' is not a number of bytes", id="a text as bytes"),
        pytest.param("memory_bytes = 1.5", "memory_bytes: 1.5 is not a whole number of bytes", id="half a byte"),
        pytest.param("timeout_s = 0", "timeout_s: 0: Input should be greater than 0", id="out of bounds"),
        pytest.param("enabled = 'maybe'", "enabled: 'maybe' is not true or false", id="maybe"),
        pytest.param("enabled = []", "enabled: [] is not true or false", id="a list as a boolean"),
        pytest.param("names = 'one'", "names: 'one' is not a list", id="a text as a list"),
        pytest.param("names = [1]", 'names.0: 1 is not a text: put it into "quotes"', id="a number in a list of texts"),
        pytest.param("by_sensor = 5", "by_sensor: 5 is not a table", id="a number as a table"),
        pytest.param("by_sensor.a = 'x'", "by_sensor.a: 'x' is not a number", id="a text in a table of numbers"),
        pytest.param("rules = [5]", "rules.0: 5 is not a table", id="a number in a list of tables"),
        pytest.param("[[rules]]", "rules.0.country: is missing: give a value", id="a setting missing in a table"),
        pytest.param("file = 5", "file: 5 is not a path", id="a number as a path"),
        pytest.param("key = 5", 'key: that value is not a text: put it into "quotes"', id="a number as a secret is not told"),
        pytest.param("key = ''", "key: that value is too short: at least 1", id="an empty secret"),
        pytest.param(
            "timeout_s = '${HOW_LONG}'",
            "timeout_s: variable HOW_LONG is not set: set it, or write ${HOW_LONG:-default}",
            id="no such variable",
        ),
        pytest.param(
            "rules = [{country = '${EMPTY}'}]", "rules.0.country: variable EMPTY is not set: set it, or write ${EMPTY:-default}", id="empty"
        ),
        pytest.param("timeout_s = '${TEN}'", "timeout_s: 'ten' (from TEN) is not a number of seconds", id="a wrong value in a variable"),
        pytest.param("timeout_s = '${NO:-x}'", "timeout_s: 'x' (from default of NO) is not a number of seconds", id="a wrong default"),
        pytest.param("key = [ ", "is not TOML: Invalid value (at end of document)", id="no TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    assert errors_of(tmp_path / "10_x.toml", text, TEN="ten", EMPTY="") == [line]


def test_a_required_setting_that_is_missing_is_described(tmp_path: Path) -> None:
    assert errors_of(tmp_path / "10_x.toml", "", Needy) == ["host: is missing: Name of the machine"]


@pytest.mark.parametrize("model", [BaseModel, object, int, None, 5])
def test_a_config_that_is_no_settings_is_told(tmp_path: Path, model: Any) -> None:
    assert errors_of(tmp_path / "10_x.toml", "", model) == ["the Config of its stage is no Settings: write 'class Config(Settings)' there"]


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "10_x.toml").write_bytes(b"# caf\xe9")
    assert read(tmp_path / "10_x.toml").errors == [f"{tmp_path}/10_x.toml: is not UTF-8 (byte 5): save it as UTF-8"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert read(tmp_path / "10_x.toml").errors == [f"{tmp_path}/10_x.toml: cannot be read: No such file or directory"]


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    text = "timeout_s = '${NONE}'\nmemory_bytes = 'x'\nnaems = []\nkey_file = '/no/such/file'"
    assert errors_of(tmp_path / "10_x.toml", text) == [
        "timeout_s: variable NONE is not set: set it, or write ${NONE:-default}",
        "key_file: /no/such/file cannot be read: No such file or directory",
        "memory_bytes: 'x' is not a number of bytes",
        "naems: unknown setting, did you mean 'names'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("'${SECONDS}'", 5.0, id="a variable"),
        pytest.param("'${SECONDS:-7}'", 5.0, id="a variable that is set, with a default"),
        pytest.param("'${NONE:-7}'", 7.0, id="the default of one that is not set"),
        pytest.param("'${EMPTY:-7}'", 7.0, id="the default of one that is empty"),
        pytest.param("'1${SECONDS}${SECONDS}.${SECONDS}'", 155.5, id="variables in a text"),
        pytest.param("8", 8.0, id="no variable"),
    ],
)
def test_variables_are_replaced(tmp_path: Path, text: str, expected: float) -> None:
    assert config_of(tmp_path / "10_x.toml", f"timeout_s = {text}", SECONDS="5", EMPTY="").timeout_s == expected


def test_variables_are_replaced_in_lists_and_tables(tmp_path: Path) -> None:
    text = "names = ['a', '${WHO}']\nby_sensor = {x = '${N:-3}'}\nrules = [{country = '${WHO}'}]"
    config = config_of(tmp_path / "10_x.toml", text, WHO="me")
    assert (config.names, config.by_sensor, config.rules) == (["a", "me"], {"x": 3.0}, [Inner(country="me")])


@pytest.mark.parametrize("text", ["$SECONDS", "${}", "${1}", "$", "{SECONDS}", "${SECONDS"])
def test_what_is_no_variable_stays(tmp_path: Path, text: str) -> None:
    assert config_of(tmp_path / "10_x.toml", f"names = ['{text}']", SECONDS="5").names == [text]


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    config = config_of(tmp_path / "10_x.toml", f"key_file = '{tmp_path}/secret'\noptional_file = '${{WHERE}}'", WHERE=f"{tmp_path}/secret")
    assert config.key.get_secret_value() == "hush"
    assert config.optional is not None
    assert config.optional.get_secret_value() == "hush"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config.model_validate({}).timeout_s = 5  # type: ignore[misc]


def test_an_output_keeps_full_addresses_in_unless_told_otherwise() -> None:
    assert Output.model_validate({}).allow_full_addresses is False


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SecretStr("hush"), "********"),
        (SecretStr(""), '""'),
        (Path("a b"), '"a b"'),
        ("text", '"text"'),
        ([1] * 100, "[" + "1, " * 18 + "1,..."),
        (True, "true"),
        (None, "not set"),
        ([Inner(country="Guam")], '[{"country": "Guam"}]'),
        ({"ü": 1.5}, '{"ü": 1.5}'),
    ],
)
def test_values_are_shown_in_short_and_secrets_as_stars(value: object, expected: str) -> None:
    assert shown(value).replace(" ", "") == expected.replace(" ", "")
    assert len(shown(value)) <= 60


def test_every_setting_is_described_with_value_origin_default_and_meaning(tmp_path: Path) -> None:
    path = tmp_path / "10_x.toml"
    (tmp_path / "secret").write_text("hush")
    path.write_text(f"timeout_s = '${{SECONDS}}'\nmemory_bytes = 7\nkey_file = '{tmp_path}/secret'\nfile = '${{NONE:-b}}'")
    file = read(path, {"SECONDS": "5"})
    config, _ = settings_of(Config, file)
    assert config is not None
    described_lines = list(described(config, file))
    assert described_lines == [
        "enabled = true  # default; Whether the stage runs",
        "timeout_s = 5.0  # from SECONDS; default 630; How long",
        "memory_bytes = 7  # from settings file; default 100; How much",
        "names = []  # default; Which",
        "by_sensor = {}  # default; By sensor",
        "rules = []  # default; Rules",
        'file = "b"  # from default of NONE; default "a.mmdb"; Where',
        f"key = ********  # from {tmp_path}/secret; default ********; What nobody may know",
        "optional = not set  # default; What need not be given",
    ]


def test_an_error_has_all_lines_in_its_text() -> None:
    assert str(SettingsError(["a", "b"])) == "a\nb"


# A whole directory


def test_several_errors_of_several_files_come_at_once(tmp_path: Path) -> None:
    changes = {
        "40_aggregation": 'inactivity_timeout_s = "${NETSAGE_INACTIVITY_TIMEOUT_S:-630}"\nlateness = 5',
        "50_asn": 'databse = "x"\nenabled = "perhaps"',
        "54_campus_org": "",
        "70_deidentify": "keep_private = ",
        "90_additional_fields": 'domestic = "${HOME_COUNTRY}"',
    }
    conf = conf_with(tmp_path, changes)
    outcome = run_real("check", "--conf", conf, NETSAGE_INACTIVITY_TIMEOUT_S="ten")
    lines = outcome.err.splitlines()
    assert [line.removeprefix(f"{conf}/") for line in lines if "54_campus" not in line] == [
        "40_aggregation.toml: inactivity_timeout_s: 'ten' (from NETSAGE_INACTIVITY_TIMEOUT_S) is not a number of seconds",
        "40_aggregation.toml: lateness: unknown setting, did you mean 'lateness_s'?",
        "50_asn.toml: enabled: 'perhaps' is not true or false",
        "50_asn.toml: databse: unknown setting, did you mean 'database'?",
        "70_deidentify.toml: is not TOML: Invalid value (at end of document)",
        "90_additional_fields.toml: domestic: variable HOME_COUNTRY is not set: set it, or write ${HOME_COUNTRY:-default}",
    ]
    assert lines[4].startswith(f"{conf}/54_campus_org.toml: no stage 54_campus_org.py in ")
    assert (outcome.code, outcome.out) == (2, b"")


@pytest.mark.parametrize(
    ("stage", "text", "told"),
    [
        pytest.param("10_preliminaries", 'private_networks = ["10.0.0.0/33"]', "private_networks: ['10.0.0.0/33']: ", id="no prefix"),
        pytest.param("60_scireg", "layout = 3", "layout: 3: Input should be '1' or '2'", id="no such choice"),
        pytest.param("40_aggregation", "inactivity_timeout_s = nan", "inactivity_timeout_s: nan", id="NaN"),
        pytest.param("20_add_id", 'key = ""', "key: that value is too short: at least 1", id="an empty key"),
        pytest.param(
            "99_output_file", "flows_per_message = 0", "flows_per_message: 0: Input should be greater than or equal to 1", id="none"
        ),
        *(
            pytest.param(
                stage,
                f"{name} = '{'ü' * 128}'",
                f"{name}: '{'ü' * 128}': is longer than 255 bytes of UTF-8: shorten it",
                id=f"{stage} {name} of 256 bytes",
            )
            for stage, names in {
                "01_input_rabbitmq": ("queue", "exchange", "key", "dead_letters"),
                "99_output_rabbitmq": ("exchange", "key", "queue"),
            }.items()
            for name in names
        ),
        pytest.param("01_input_rabbitmq", "state = ''", "state: '': names no directory: write its path", id="no state"),
        pytest.param("55_member_orgs", "lists = ' '", "lists: ' ': names no directory: write its path", id="no directory of lists"),
        pytest.param("01_input_rabbitmq", "queue = ''", "queue: '' is too short: at least 1", id="a queue without a name"),
    ],
)
def test_values_that_our_own_stages_refuse_are_named(tmp_path: Path, stage: str, text: str, told: str) -> None:
    conf = conf_with(tmp_path, {stage: text})
    outcome = run("check", "--conf", conf)
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"{conf}/{stage}.toml: {told}")
    assert outcome.code == 2


def test_an_empty_directory_of_settings_names_no_stage(tmp_path: Path) -> None:
    outcome = run("check", "--conf", tmp_path)
    assert outcome.err.splitlines() == [f"{tmp_path}: names no stage: copy the settings files of the stages that shall run into it"]
    assert outcome.code == 2


@pytest.mark.parametrize("where", ["key", "key_file"])
def test_no_secret_is_ever_printed(tmp_path: Path, where: str) -> None:
    (tmp_path / "secret").write_text("hush-hush")
    conf = conf_with(tmp_path, {"20_add_id": f"{where} = '{'hush-hush' if where == 'key' else tmp_path / 'secret'}'\nlabel = 1"})
    wrong = run("check", "--conf", conf)
    (conf / "20_add_id.toml").write_text(f"{where} = '{'hush-hush' if where == 'key' else tmp_path / 'secret'}'")
    right = run("config", "--conf", conf)
    assert (wrong.code, right.code) == (2, 0)
    assert "hush-hush" not in wrong.err + right.err + right.out.decode()
    assert "key = ********" in right.out.decode()


def test_our_own_settings_hold_no_errors() -> None:
    outcome = run("check")
    assert outcome.code == 0
    assert outcome.said == []
    assert outcome.out.decode().endswith(": no errors\n")


def test_a_variable_of_the_environment_reaches_a_stage() -> None:
    line = "inactivity_timeout_s = 900.0  # from NETSAGE_INACTIVITY_TIMEOUT_S; default 630; "
    assert line in run("config", "40_aggregation", NETSAGE_INACTIVITY_TIMEOUT_S="900").out.decode()
    assert "NETSAGE_INACTIVITY_TIMEOUT_S" not in os.environ


def test_a_setting_of_an_operators_own_stage_is_checked_like_ours(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "65_mine", "return flow")
    conf = conf_with(tmp_path, {"65_mine": "label = 5\nlabl = 'x'"})
    assert run("check", "--conf", conf, "--stages", stages).err.splitlines() == [
        f'{conf}/65_mine.toml: label: 5 is not a text: put it into "quotes"',
        f"{conf}/65_mine.toml: labl: unknown setting, did you mean 'label'?",
    ]
