"""Settings of pmacct plugins: our TOML, the JSON of pmacct-to-elasticsearch, one converted into the other, and what is wrong with them."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.pmacct_plugin import settings as plugins
from netsage_pipeline.pmacct_plugin import templates as plugin_templates
from tests.command import run

#: With everything that people write: trailing commas, comments as keys, what has no use any more.
THEIRS = r"""
{
    "CommentsBegin": "ingress, both routers",
    "LogFile": "/var/log/$PluginName.log",
    "ES_URL": "http://es.example:9200",
    "ES_AuthType": "basic",
    "ES_UserName": "writer",
    "ES_Password": "a, }secret",
    "ES_IndexName": "netflow-%Y-%m-%d",
    "ES_Type": "ingress",
    "ES_FlushSize": "250",
    "InputFile": "/var/lib/pmacct/$PluginName.json",
    "InputFormat": "json",
    "ReaderThreads": 2,
    "Transformations": [
        {
            "Conditions": [ "OR", { "iface_in": [ 1, 2, ], "__op__": "in" }, [ { "bytes": 10, "__op__": ">" }, ], ],
            "Actions": [
                { "Type": "AddField", "Name": "way", "Value": "in, \"$iface_in\"", },
                { "Type": "AddFieldLookup", "Name": "peer name", "LookupFieldName": "peer_ip_src", "LookupTableFile": "peers.json" },
                { "Type": "DelField", "Name": "tag" },
            ],
        },
    ],
}
"""


def written(directory: Path, text: str = THEIRS, name: str = "my_print.conf") -> Path:
    (directory / "peers.json").write_text('{"192.0.2.1": "upstream",}', "utf-8")
    (directory / name).write_text(text, "utf-8")
    return directory / name


def test_settings_of_pmacct_to_elasticsearch_are_read_as_they_are(tmp_path: Path) -> None:
    written(tmp_path)
    plugin, file, remarks = plugins.read("my_print", tmp_path)
    assert (plugin.index, plugin.pattern, plugin.flush_size) == ("netflow-%Y-%m-%d", "netflow-*-*-*", 250)
    assert plugin.input_file == Path("/var/lib/pmacct/my_print.json")
    assert plugin.password is not None
    assert (plugin.url.get_secret_value(), plugin.user, plugin.password.get_secret_value()) == (
        "http://es.example:9200",
        "writer",
        "a, }secret",
    )
    (transformation,) = plugin.transformations
    assert transformation.conditions == ["OR", {"iface_in": [1, 2], "__op__": "in"}, [{"bytes": 10, "__op__": ">"}]]
    assert [action.type for action in transformation.actions] == ["AddField", "AddFieldLookup", "DelField"]
    assert remarks == []
    assert plugin_templates.template_of(plugin, file.path)["index_patterns"] == ["netflow-*-*-*"]


def test_converted_settings_say_the_same(tmp_path: Path) -> None:
    before = plugins.read_p2es(written(tmp_path))[0]
    outcome = run("pmacct", "convert", tmp_path / "my_print.conf")
    assert outcome.code == 0
    assert (tmp_path / "my_print.toml").stat().st_mode & 0o777 == 0o600
    assert "ES_Type: has no use here" in outcome.err
    after, file, remarks = plugins.read("my_print", tmp_path)
    assert file.path.name == "my_print.toml"
    assert after == before
    assert remarks == []
    again = run("pmacct", "convert", tmp_path / "my_print.conf")
    assert (again.code, again.err) == (2, f"{tmp_path}/my_print.toml: is there already: move it away first\n")


@pytest.mark.parametrize("value", ["null", "NaN", '"${SOMETHING}"', '"${HOME}"'])
def test_settings_that_toml_cannot_say_are_not_converted(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, f'{{"ES_IndexName": "x", "Transformations": [{{"Conditions": [{{"a": {value}}}], "Actions": []}}]}}')
    outcome = run("pmacct", "convert", path)
    line = f"{path}: null, NaN or ${{NAME}} is in it, which TOML would not say: keep my_print.conf, it is read as it is\n"
    assert (outcome.code, outcome.err) == (2, line)
    assert not path.with_suffix(".toml").exists()


def test_the_name_of_the_index_in_the_input_file_goes_by_the_clock(tmp_path: Path) -> None:
    path = written(tmp_path, '{"ES_IndexName": "in-%Y", "ES_Type": "t", "InputFile": "/x/$PluginName-$IndexName-$Type.json"}')
    wanted = [Path(f"/x/my_print-in-{year}-t.json") for year in range(date.today().year, date.today().year + 2)]
    assert plugins.read("my_print", tmp_path)[0].input_file in wanted
    outcome = run("pmacct", "convert", path)
    line = f"{path}: InputFile: $IndexName holds the date, which TOML would not say: keep my_print.conf, it is read as it is\n"
    assert (outcome.code, outcome.err) == (2, line)
    written(tmp_path, '{"ES_IndexName": "in", "InputFile": "/x/$IndexName.json"}')
    assert run("pmacct", "convert", path).code == 0
    assert plugins.read("my_print", tmp_path)[0].input_file == Path("/x/in.json")


def test_an_index_without_a_name_is_told_though_the_input_file_has_it(tmp_path: Path) -> None:
    path = written(tmp_path, r'{"ES_IndexName": "a\ud800", "InputFile": "/x/$IndexName.json"}')
    outcome = run("pmacct", "my_print", "--conf", tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"{path}: ES_IndexName: ")


def test_a_setting_that_is_none_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, '{"ES_IndexName": "x", "Transformation": [], "_comment": "", "LogFile": "y"}')
    assert plugins.read("my_print", tmp_path)[2] == [f"{path}: Transformation: is no setting of pmacct-to-elasticsearch: left out"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"ES_IndexName": "x" "y": 1}', ["my_print.conf: is not JSON: line 1, column 22: Expecting ',' delimiter"]),
        ("[]", ["my_print.conf: is no JSON object: it holds the settings of pmacct-to-elasticsearch"]),
        (
            "{}",
            [
                "my_print.conf: ES_IndexName: is missing: Name of the index, with strftime codes for a record's time in UTC: "
                "netflow-%Y-%m-%d"
            ],
        ),
        (
            '{"ES_IndexName": "Netflow-%Y", "ES_URL": "es:9200", "ES_FlushSize": "many", "ES_AuthType": "digest"}',
            [
                "my_print.conf: ES_AuthType: digest is nothing that Elasticsearch knows: write basic",
                "my_print.conf: ES_URL: that value: it does not begin with http:// or https://: write https://host:9200 "
                "(user and password have settings of their own)",
                "my_print.conf: ES_IndexName: 'Netflow-%Y': makes 'Netflow-2000', which is no name of an index: "
                "lower-case letters, digits, '.', '_' and '-', as netflow-%Y-%m-%d",
                "my_print.conf: ES_FlushSize: 'many' is not a number",
            ],
        ),
        (
            '{"ES_IndexName": "%Y-x"}',
            [
                "my_print.conf: ES_IndexName: '%Y-x': begins with a date, so its index template would be for all indices: "
                "begin with a word, as netflow-%Y-%m-%d"
            ],
        ),
        (
            '{"ES_IndexName": "x", "Transformations": [{"Conditions": ["NOT"], "Actions": [{"Type": "DelField"}, {"Type": "Add"}]}]}',
            [
                "my_print.conf: Transformations.0.Conditions: ['NOT']: 'NOT' stands first in a list of conditions: "
                "AND or OR may stand there",
                "my_print.conf: Transformations.0.Actions.0.Name: is missing: give a value",
                "my_print.conf: Transformations.0.Actions.1: {'type': 'Add'}: Input tag 'Add' found using 'type' does not match any of the "
                "expected tags: 'AddField', 'AddFieldLookup', 'DelField'",
            ],
        ),
        (
            '{"ES_IndexName": "x", "Transformations": [{"Conditions": [], "Action": [], "Actions": [{"Type": "AddField", "Name": "a", '
            '"Value": []}, {"Type": "AddFieldLookup", "Name": "a", "LookupFieldName": "b", "LookupTable": {"1": null}}]}]}',
            [
                "my_print.conf: Transformations.0.Actions.0.Value: []: is neither text nor number",
                "my_print.conf: Transformations.0.Actions.1.LookupTable.1: None: is neither text nor number",
                "my_print.conf: Transformations.0.Action: unknown setting",
            ],
        ),
        (
            '{"ES_IndexName": "x", "ES_AuthType": "basic"}',
            ["my_print.conf: ES_AuthType: basic needs ES_UserName and ES_Password"],
        ),
        (
            '{"ES_IndexName": "x", "ES_AuthType": "kerberos", "ES_UserName": "a", "ES_Password": "b"}',
            ["my_print.conf: ES_AuthType: kerberos is nothing that Elasticsearch knows: write basic"],
        ),
    ],
)
def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, text: str, lines: list[str]) -> None:
    written(tmp_path, text)
    outcome = run("pmacct", "my_print", "--conf", tmp_path)
    assert outcome.code == 2
    assert outcome.err.splitlines() == [f"{tmp_path}/{line}" for line in lines]


def test_all_files_that_settings_name_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        """
        index = "a"
        template = "template.json"
        transformations = [
            { actions = [ { type = "AddFieldLookup", name = "x", lookup_field = "y", table_file = "none.json" } ] },
            { actions = [ { type = "AddFieldLookup", name = "x", lookup_field = "y", table_file = "list.json" } ] },
            { actions = [ { type = "AddFieldLookup", name = "x", lookup_field = "y" } ] },
        ]
        """,
        "utf-8",
    )
    (tmp_path / "list.json").write_text('{"a": []}', "utf-8")
    (tmp_path / "template.json").write_text('{"mappings": {,}', "utf-8")
    outcome = run("pmacct", "a", "--conf", tmp_path)
    assert (outcome.code, outcome.err.splitlines()) == (
        2,
        [
            f"{tmp_path}/none.json: cannot be read: No such file or directory",
            f"{tmp_path}/list.json: a: is neither text nor number",
            f"{tmp_path}/a.toml: transformations.2.actions.0: needs a table or a table_file, and not both",
            f"{tmp_path}/template.json: is not JSON: line 1, column 17: Expecting ',' delimiter",
        ],
    )


def test_a_plugin_without_settings_is_told_where_they_belong(tmp_path: Path) -> None:
    outcome = run("pmacct", "other", "--conf", tmp_path)
    line = f"{tmp_path}/other.toml: no such settings of a plugin, and no other.conf either: write it, or name its directory with --conf\n"
    assert (outcome.code, outcome.err) == (2, line)
    assert run("pmacct", "../etc", "--conf", tmp_path).code == 2


def test_a_plugin_that_is_switched_off_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('index = "a"\nenabled = false\n', "utf-8")
    outcome = run("pmacct", "a", "--conf", tmp_path)
    assert (outcome.code, outcome.err) == (0, f"{tmp_path}/a.toml: is switched off: enabled = true switches it on\n")


@pytest.mark.parametrize(
    ("given", "mappings"),
    [
        (
            {"mappings": {"_default_": {"_all": {"enabled": False}, "properties": {"a": {"type": "string", "index": "not_analyzed"}}}}},
            {"properties": {"a": {"type": "keyword"}}},
        ),
        ({"mappings": {"ingress": {"properties": {"a": {"type": "string"}}}}}, {"properties": {"a": {"type": "text"}}}),
        ({"mappings": {"properties": {"index": {"type": "long"}}}}, {"properties": {"index": {"type": "long"}}}),
        (
            {"mappings": {"dynamic_templates": [{"x": {"mapping": {"type": "keyword", "index": True}}}]}},
            {"dynamic_templates": [{"x": {"mapping": {"type": "keyword", "index": True}}}]},
        ),
    ],
)
def test_templates_of_older_servers_are_put_right(tmp_path: Path, given: dict[str, Any], mappings: dict[str, Any]) -> None:
    (tmp_path / "template.json").write_text(json.dumps(given), "utf-8")
    plugin = plugins.Plugin(index="flows-%Y.%m-in", template=Path("template.json"))
    template = plugin_templates.template_of(plugin, tmp_path / "a.toml")
    assert template["template"] == {"mappings": mappings}
    assert template["index_patterns"] == ["flows-*.*-in"]
    assert plugin_templates.name_of(plugin) == "pmacct-flows-in"


@pytest.mark.parametrize("made_of", [{"template": {"settings": {"number_of_shards": 3}}}, {"composed_of": ["mine"]}])
def test_a_template_of_todays_form_stays_as_it_is(tmp_path: Path, made_of: dict[str, Any]) -> None:
    given = {"index_patterns": ["x-*"], "priority": 7, **made_of}
    (tmp_path / "template.json").write_text(json.dumps(given), "utf-8")
    plugin = plugins.Plugin(index="x-%Y", template=Path("template.json"))
    assert plugin_templates.template_of(plugin, tmp_path / "a.toml") == given


def test_a_template_for_other_indices_is_told(tmp_path: Path) -> None:
    (tmp_path / "template.json").write_text('{"index_patterns": ["x-*", "y"], "template": {}}', "utf-8")
    (tmp_path / "a.toml").write_text('index = "xy"\ntemplate = "template.json"\n', "utf-8")
    outcome = run("pmacct", "a", "--conf", tmp_path)
    line = f"{tmp_path}/template.json: index_patterns: none is for xy, so it would have no effect\n"
    assert (outcome.code, outcome.err) == (2, line)


def test_a_file_of_the_plugin_that_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'index = "a"\ninput_file = "{tmp_path}/none"\n', "utf-8")
    outcome = run("pmacct", "a", "--conf", tmp_path)
    assert (outcome.code, outcome.err) == (1, f"{tmp_path}/none: cannot be read: No such file or directory\n")


def test_a_path_that_is_empty_is_not_set(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('index = "a"\ninput_file = ""\ntemplate = ""\ndead_letters = "${NOT_SET:-}"\n', "utf-8")
    plugin = plugins.read("p", tmp_path)[0]
    assert (plugin.input_file, plugin.template, plugin.dead_letters) == (None, None, None)


def test_an_input_that_is_empty_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('index = "a"', "utf-8")
    outcome = run("pmacct", "p", "--conf", tmp_path, "--input", "")
    assert (outcome.code, outcome.err) == (2, "--input: is empty: is a variable empty?\n")


@pytest.mark.parametrize("kind", ["device", "pipe", "directory"])
def test_dead_letters_are_a_file(tmp_path: Path, kind: str) -> None:
    letters = {"device": Path("/dev/zero"), "pipe": tmp_path / "pipe", "directory": tmp_path}[kind]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "p.toml").write_text(f'index = "a"\ndead_letters = "{letters}"\n', "utf-8")
    outcome = run("pmacct", "p", "--conf", tmp_path, stdin=b"neither")
    line = f"{tmp_path}/p.toml: dead_letters: {letters} is no regular file: name one, or one that is not there yet\n"
    assert (outcome.code, outcome.err) == (2, line)


def test_the_file_of_dead_letters_is_not_read_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'index = "a"\ninput_file = "{tmp_path}/in"\n', "utf-8")
    letters = tmp_path / "in.dead-letters.ndjson"
    outcome = run("pmacct", "a", "--conf", tmp_path, "--input", letters)
    assert (outcome.code, outcome.err) == (2, f"{letters}: is where refused records are kept, so it cannot be read: move it away first\n")
