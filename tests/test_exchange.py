"""Lookup tables that change on disk: new ones are taken over, broken ones refused, and what is held and counted goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.config import SettingsError
from netsage_pipeline.flow import Now
from netsage_pipeline.tables.tables import Nothing, Tables
from tests.command import conf_with, stage_file, tables_with
from tests.flows import NOW, flow
from tests.lookups.test_mmdb import write

NAMES = ("GeoLite2-ASN.mmdb", "CAIDA-org-lookup.csv", "members", "sensor_types.json")
KINDS = ("mmdb", "caida", "members", "patterns")
ASKED: tuple[tuple[Any, ...], ...] = (("192.0.2.1",), (64500,), ("192.0.2.1", 64500), ("sensor",))


def fill(directory: Path, word: str) -> None:
    """Four tables that say a word of 192.0.2.1, AS 64500 and the sensor."""
    (directory / "members").mkdir(parents=True, exist_ok=True)
    write(directory / NAMES[0], {"192.0.2.0/24": {"autonomous_system_number": 64500, "name": word}})
    (directory / NAMES[1]).write_text(f"64500,{word}\n")
    (directory / NAMES[2] / "one.toml").write_text(f'[members]\n"192.0.2.0/24" = "{word}"\n')
    (directory / NAMES[3]).write_text(f'{{"sensor": "{word}"}}')


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    fill(tmp_path / "tables", "old")
    return tmp_path / "tables"


@pytest.fixture
def tables(directory: Path) -> Tables:
    opened = Tables(directory)
    for kind, name in zip(KINDS, NAMES, strict=True):
        opened(kind, Path(name))
    assert words(opened) == ["old"] * 4
    return opened


def words(tables: Tables) -> list[Any]:
    found = [tables(kind, Path(name)).get(*key) for kind, name, key in zip(KINDS, NAMES, ASKED, strict=True)]
    return [each["name"] if isinstance(each, dict) else each for each in found]


def look(tables: Tables) -> tuple[Tables | None, list[str]]:
    """Two looks, after which a change counts, and what was refused."""
    assert tables.changed() is None
    assert tables.refused == []
    return tables.changed(), tables.refused


def replacing(path: Path, content: bytes) -> Callable[..., Any]:
    """A Path.open during which somebody replaces that file, once."""
    opening: Any = Path.open
    new = path.with_name("new")
    new.write_bytes(content)

    def opened(self: Path, *arguments: Any, **more: Any) -> Any:
        file = opening(self, *arguments, **more)
        if self == path and os.path.exists(new):  # noqa: PTH110
            os.replace(new, path)  # noqa: PTH105
        return file

    return opened


def test_without_a_change_there_is_nothing_new(tables: Tables) -> None:
    for _ in range(3):
        assert tables.changed() is None
    assert tables.refused == []


@pytest.mark.parametrize("renamed", [False, True], ids=["written in place", "renamed over it"])
@pytest.mark.parametrize("which", range(4), ids=KINDS)
def test_a_changed_table_is_opened_anew_and_the_others_are_shared(
    tables: Tables, directory: Path, tmp_path: Path, which: int, renamed: bool
) -> None:
    fill(tmp_path / "new", "new")
    path = Path(NAMES[which]) if which != 2 else Path("members/one.toml")
    if renamed:
        (tmp_path / "new" / path).rename(directory / path)
    else:
        (directory / path).write_bytes((tmp_path / "new" / path).read_bytes())
    other, refused = look(tables)
    assert other is not None
    assert refused == []
    assert words(other) == ["new" if index == which else "old" for index in range(4)]
    assert words(tables) == ["old"] * 4
    shared = [other.opened[key] is table for key, table in tables.opened.items()]
    assert shared == [index != which for index in range(4)]
    assert other.changed() is None
    assert other.changed() is None


def test_a_file_of_the_same_size_and_time_is_seen(tables: Tables, directory: Path) -> None:
    path = directory / NAMES[1]
    before = path.stat()
    path.write_text("64500,new\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    other, _ = look(tables)
    assert other is not None
    assert words(other)[1] == "new"


def test_a_file_that_is_still_being_written_is_not_opened(tables: Tables, directory: Path) -> None:
    path = directory / NAMES[1]
    for rows in range(1, 4):
        path.write_text("1,x\n" * rows)
        assert tables.changed() is None
    path.write_text("64500,new\n")
    other, refused = look(tables)
    assert other is not None
    assert (words(other)[1], refused) == ("new", [])


def test_a_file_that_changes_while_it_is_read_is_read_once_more(tables: Tables, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / NAMES[1]
    path.write_text("64500,new\n")
    assert tables.changed() is None
    monkeypatch.setattr(Path, "open", replacing(path, b"64500,newest\n"))
    assert tables.changed() is None
    other, _ = look(tables)
    assert other is not None
    assert words(other)[1] == "newest"


def test_a_file_that_is_replaced_while_it_is_opened_for_the_first_time_is_seen_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / NAMES[1]
    tables = Tables(directory)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", replacing(path, b"64500,new\n"))
        assert tables("caida", Path(NAMES[1])).get(64500) == "old"
    other, _ = look(tables)
    assert other is not None
    assert other("caida", Path(NAMES[1])).get(64500) == "new"


@pytest.mark.parametrize(
    ("which", "broken", "wrong"),
    [
        pytest.param(0, lambda whole: whole[: len(whole) // 2], "is no MaxMind DB file, or is truncated: fetch it again", id="mmdb, half"),
        pytest.param(0, lambda _: b"", "is empty", id="mmdb, empty"),
        pytest.param(0, lambda _: b"64500,new\n", "is no MaxMind DB file, or is truncated: fetch it again", id="mmdb, a CSV"),
        pytest.param(1, lambda whole: whole + b"645", "line 2: not 'asn,organization'", id="caida, half a row"),
        pytest.param(1, lambda _: b"", "is empty", id="caida, empty"),
        pytest.param(1, lambda _: b"a,b\n" * 25, "(and 19 more)", id="caida, another file"),
        pytest.param(2, lambda whole: whole[:-3], "one.toml: is not TOML", id="members, half"),
        pytest.param(2, lambda _: b"asns = 5", "one.toml: asns: is not a list of numbers", id="members, another type"),
        pytest.param(3, lambda whole: whole[:-3], "is not JSON", id="patterns, half"),
        pytest.param(3, lambda _: b'["new"]', "is not a JSON object", id="patterns, a list"),
        pytest.param(3, lambda _: b'{"(": "new"}', "is no regular expression", id="patterns, a fault in one"),
        pytest.param(3, lambda _: b"[" * 100_000, ": ", id="patterns, nested without end"),
    ],
)
def test_a_broken_new_table_is_refused_once_and_the_old_one_stays(
    tables: Tables, directory: Path, which: int, broken: Callable[[bytes], bytes], wrong: str
) -> None:
    path = directory / NAMES[which]
    file = path / "one.toml" if path.is_dir() else path
    good = file.read_bytes()
    file.write_bytes(broken(good))
    other, refused = look(tables)
    assert other is None
    assert len(refused) == 1
    assert refused[0].startswith(f"{path}: ")
    assert wrong in refused[0]
    assert refused[0].endswith(": the table read before stays in use")
    assert words(tables) == ["old"] * 4
    assert (tables.changed(), tables.refused) == (None, [])
    file.write_bytes(good.replace(b"old", b"new"))
    mended, refused = look(tables)
    assert mended is not None
    assert (words(mended)[which], refused) == ("new", [])


def test_a_broken_table_does_not_keep_another_one_back(tables: Tables, directory: Path) -> None:
    (directory / NAMES[0]).write_bytes(b"broken")
    (directory / NAMES[1]).write_text("64500,new\n")
    other, refused = look(tables)
    assert other is not None
    assert words(other) == ["old", "new", "old", "old"]
    assert len(refused) == 1
    assert (other.changed(), other.refused, other.changed(), other.refused) == (None, [], None, [])


def test_a_directory_in_place_of_a_file_is_refused_and_a_file_in_place_of_a_directory_too(tables: Tables, directory: Path) -> None:
    (directory / NAMES[1]).unlink()
    (directory / NAMES[1]).mkdir()
    shutil.rmtree(directory / "members")
    (directory / "members").write_text("[members]")
    other, refused = look(tables)
    assert other is None
    assert [line.partition(": ")[2].partition(":")[0] for line in refused] == [
        "was a file and is a directory",
        "was a directory and is a file",
    ]
    assert words(tables) == ["old"] * 4


@pytest.mark.parametrize("which", range(4), ids=KINDS)
def test_a_table_that_vanishes_stays_in_use_and_comes_back(tables: Tables, directory: Path, which: int) -> None:
    path = directory / NAMES[which]
    path.rename(directory / "away")
    other, refused = look(tables)
    assert other is None
    assert refused == [f"{path}: cannot be looked at (No such file or directory): the table read before stays in use"]
    assert (tables.changed(), tables.refused) == (None, [])
    (directory / "away").rename(path)
    back, refused = look(tables)
    assert back is not None
    assert (words(back), refused) == (["old"] * 4, [])


def test_a_table_that_appears_is_opened(directory: Path) -> None:
    for name in NAMES:
        (directory / name).rename(directory / f"{name}.later")
    tables = Tables(directory)
    assert words(tables) == [None] * 4
    assert tables.missing == [directory / name for name in NAMES]
    (directory / f"{NAMES[0]}.later").rename(directory / NAMES[0])
    (directory / NAMES[1]).write_text("broken\nbroken\n")
    other, refused = look(tables)
    assert other is not None
    assert words(other) == ["old", None, None, None]
    assert other.missing == [directory / name for name in NAMES[1:]]
    assert len(refused) == 1
    assert refused[0].endswith("line 2: not 'asn,organization': the first field must be a whole number: its stage goes on without it")
    (directory / f"{NAMES[2]}.later").rename(directory / NAMES[2])
    last, _ = look(other)
    assert last is not None
    assert words(last) == ["old", None, "old", None]


def test_a_member_list_that_is_added_renamed_or_taken_away_is_a_change(tables: Tables, directory: Path) -> None:
    members = directory / "members"
    (members / "a.toml").write_text('[members]\n"192.0.2.0/24" = "added"\n')
    added, _ = look(tables)
    assert added is not None
    assert words(added)[2] == "added"
    (members / "a.toml").rename(members / "z.toml")
    renamed, _ = look(added)
    assert renamed is not None
    assert words(renamed)[2] == "old"
    (members / "one.toml").unlink()
    (members / ".#one.toml").symlink_to("nowhere")
    without, _ = look(renamed)
    assert without is None
    assert "cannot" not in "".join(renamed.refused)


# The chain


def chain_of(tmp_path: Path, conf: dict[str, str | None] | None = None, own: Path | None = None) -> tuple[Chain, Tables, list[Configured]]:
    """A chain whose tables lie in tmp_path/tables."""
    if not (tmp_path / "tables").exists():
        tables_with(tmp_path, {})
    settings = conf_with(tmp_path, conf or {})
    stages = configured(settings, [folders.shipped("stages"), *([own] if own else [])])
    tables = Tables(tmp_path / "tables")
    return Chain(stages, tables, Now(NOW)), tables, stages


def body(**meta: Any) -> bytes:
    return orjson.dumps(flow(meta={"src_asn": 217, **meta}))


def rename_217(tmp_path: Path, name: str) -> None:
    (tmp_path / "tables" / "CAIDA-org-lookup.csv").write_text(f"217,{name}\n")


def organizations(chain: Chain, finished: list[Any]) -> list[str]:
    return [each["meta"]["src_organization"] for each in chain.enrich(finished)]


def taken_over(chain: Chain, tables: Tables) -> Tables:
    other, refused = look(tables)
    assert other is not None
    assert refused == []
    chain.exchange(other)
    return other


def test_new_values_come_out_after_the_exchange_although_ends_are_remembered(tmp_path: Path) -> None:
    chain, tables, _ = chain_of(tmp_path)
    chain.take(body(), "q", "1")
    assert organizations(chain, chain.drain()) == ["University of Minnesota"]
    rename_217(tmp_path, "New Name")
    chain.take(body(), "q", "2")
    assert organizations(chain, chain.drain()) == ["University of Minnesota"]
    taken_over(chain, tables)
    chain.take(body(), "q", "3")
    assert organizations(chain, chain.drain()) == ["New Name"]


def test_held_flows_survive_an_exchange_and_get_new_values_when_they_are_finished(tmp_path: Path) -> None:
    chain, tables, _ = chain_of(tmp_path)
    chain.take(body(), "q", "1")
    stitching = chain.stitching
    rename_217(tmp_path, "New Name")
    taken_over(chain, tables)
    chain.take(body(), "q", "2")
    assert chain.stitching is stitching
    assert chain.steps.stitching is stitching
    [done] = chain.enrich(chain.drain())
    assert (done["stitched_flows"], done["values"]["num_bits"], done["meta"]["src_organization"]) == (2, 16_000, "New Name")


def test_a_dead_letter_enters_the_new_stages(tmp_path: Path) -> None:
    chain, tables, _ = chain_of(tmp_path)
    rename_217(tmp_path, "New Name")
    taken_over(chain, tables)
    letter = {"stage": "53_caida_org", "source": "q", "position": "1", "payload": orjson.loads(body())}
    assert organizations(chain, chain.enter(letter)) == ["New Name"]


def test_counters_notes_and_the_hit_rate_do_not_jump(tmp_path: Path) -> None:
    chain, tables, _ = chain_of(tmp_path)
    for number in range(10):
        chain.take(body(src_port=number), "q", str(number))
    chain.take(body(src_ip="10.0.0.1"), "q", "private")
    chain.take(b"{", "q", "broken")
    chain.notes["noted before"] += 3
    chain.enrich(chain.drain())
    before = chain.read, chain.enriched, chain.dropped.copy(), chain.refused.copy(), chain.notes.copy(), chain.hit_rate(), len(chain.dead)
    assert chain.hit_rate() > 0.5
    rename_217(tmp_path, "New Name")
    taken_over(chain, tables)
    after = chain.read, chain.enriched, chain.dropped, chain.refused, chain.notes, chain.hit_rate(), len(chain.dead)
    assert after == before
    chain.take(body(), "q", "again")
    chain.enrich(chain.drain())
    assert 0 < chain.hit_rate() < before[5]


REFUSING = '''"""{name}: refuses a table.

Reads   ip
Writes  mine_{digits}  text
Source  {file}
Drops   nothing
"""

from pathlib import Path

from netsage_pipeline.config import Settings


class Config(Settings):
    pass


def end(config, lookups):
    table = lookups("caida", Path("{file}"))
    word = table.get(1)
    if word == "bad":
        raise ValueError("1 must not be bad")

    def process(end):
        end["mine_{digits}"] = word

    return process
'''


def test_a_factory_that_refuses_a_new_table_leaves_the_chain_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "stages"
    own.mkdir()
    for digits, file in (("61", "a.csv"), ("62", "b.csv")):
        (own / f"{digits}_mine.py").write_text(REFUSING.format(name=f"{digits} mine", digits=digits, file=file))
    tables_with(tmp_path, {"a.csv": b"1,a\n", "b.csv": b"1,b\n"})
    chain, tables, _ = chain_of(tmp_path, {"61_mine": "", "62_mine": ""}, own)
    chain.take(body(), "q", "1")
    stitching, steps = chain.stitching, chain.steps

    def mine() -> tuple[str, str]:
        chain.take(body(), "q", "1")
        meta = chain.enrich(chain.drain())[0]["meta"]
        return meta["src_mine_61"], meta["src_mine_62"]

    (tmp_path / "tables" / "a.csv").write_text("1,bad\n")
    (tmp_path / "tables" / "b.csv").write_text("1,new b\n")
    other, _ = look(tables)
    assert other is not None
    with pytest.raises(SettingsError, match=r"61_mine.py: end\(\) raised ValueError: 1 must not be bad"):
        chain.exchange(other)
    assert (chain.stitching, chain.steps) == (stitching, steps)
    assert mine() == ("a", "b")
    assert other.changed() is None

    (tmp_path / "tables" / "a.csv").write_text("1,new a\n")
    taken_over(chain, other)
    assert mine() == ("new a", "new b")


def test_a_chain_that_holds_nothing_and_an_operators_stage_between_end_stages_can_be_exchanged(tmp_path: Path) -> None:
    own = stage_file(tmp_path / "stages", "54_mine", "return flow")
    chain, tables, _ = chain_of(tmp_path, {"40_aggregation": None, "54_mine": ""}, own)
    assert organizations(chain, chain.take(body(), "q", "1")) == ["University of Minnesota"]
    rename_217(tmp_path, "New Name")
    taken_over(chain, tables)
    assert organizations(chain, chain.take(body(), "q", "2")) == ["New Name"]


def test_a_table_that_only_a_factory_of_the_exchange_asks_for_is_watched_too(directory: Path, tables: Tables) -> None:
    (directory / NAMES[1]).write_text("64500,new\n")
    other, _ = look(tables)
    assert other is not None
    assert isinstance(other("caida", Path("more.csv")), Nothing)
    (directory / "more.csv").write_text("1,more\n")
    last, _ = look(other)
    assert last is not None
    assert last("caida", Path("more.csv")).get(1) == "more"
