"""lookups update: tables fetched from a real server, over real TLS; what is wrong costs one line, and the table in use stays."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netsage_pipeline import folders
from netsage_pipeline.commands import lookups
from netsage_pipeline.tables import fetch
from tests.certificates import certificates
from tests.command import COMMAND, LOOKUPS, Outcome, run, surroundings
from tests.https import Far, File, archive, far
from tests.lookups.test_mmdb import write

KEY = "s3cret-licence-key"
NONE = "its first records have no"
OURS = "which is for this machine only"
CITY, ASN, SCIREG = ((LOOKUPS / name).read_bytes() for name in ("GeoLite2-City.mmdb", "GeoLite2-ASN.mmdb", "scireg.mmdb"))
CSV = b"asn,organization\n64500,One\n64501,Two\n"
RUBY = b"@asn_list['a'] = [217]\n@members['a'] = { '192.0.2.0/24' => 'A', '444.0.0.0/8' => 'B' }\n"


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(tls: Path) -> Iterator[Far]:
    with far(tls) as made:
        yield made


class Site:
    """A directory of tables and an operator's environment."""

    def __init__(self, directory: Path, ca: Path) -> None:
        self.tables = directory / "tables"
        self.conf = directory / "sources.toml"
        self.conf.write_text((folders.shipped("conf.d") / "lookups" / "sources.toml").read_text())
        self.environment = {"SSL_CERT_FILE": str(ca)}

    def update(self, *arguments: str, **environment: str) -> Outcome:
        given: Any = self.environment | environment
        return run("lookups", "update", "--conf", self.conf, *arguments, lookups=self.tables, **given)

    def refuses(self, name: str, **environment: str) -> str:
        """What is wrong, of a run that fails with one line about it, and leaves all as it was."""
        before = self.files()
        outcome = self.update(name, **environment)
        assert (outcome.code, outcome.out) == (1, b"")
        line, count = outcome.err.splitlines()
        assert count == "1 of 1 failed"
        assert self.files() == before
        assert KEY not in outcome.err
        table = self.tables / TABLES[name]
        begin, end = f"{name}: refused: ", f"; {table} {'stays as it is' if table.exists() else 'is still missing'}"
        assert line.startswith(begin)
        assert line.endswith(end)
        return line.removeprefix(begin).removesuffix(end)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """All tables, and when they were changed."""
        found = {path: path.stat() for path in self.tables.rglob("*") if path.is_file() and ".update" not in path.parts}
        return {str(path.relative_to(self.tables)): (path.read_bytes(), at.st_mtime_ns) for path, at in found.items()}

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.tables / ".update").iterdir() if path.name != "memory.json"]


TABLES = {"city": "GeoLite2-City.mmdb", "asn": "GeoLite2-ASN.mmdb", "caida": "CAIDA-org-lookup.csv", "scireg": "scireg.mmdb"}


@pytest.fixture
def site(tmp_path: Path, tls: Path) -> Site:
    return Site(tmp_path, tls / "ca.pem")


def offer(server: Far, path: str, body: bytes, **more: Any) -> str:
    server.files[path] = File(body, **more)
    return f"{server.url}{path}"


@pytest.fixture
def caida(site: Site, server: Far) -> File:
    """The csv that CAIDA's address has, of which the site has an older one."""
    site.environment["NETSAGE_CAIDA_URL"] = offer(server, "/caida.csv", CSV)
    site.tables.mkdir()
    (site.tables / "CAIDA-org-lookup.csv").write_bytes(b"64500,Old\n")
    return server.files["/caida.csv"]


def maxmind(site: Site, server: Far, **more: Any) -> None:
    """The server is MaxMind, and the site has an account there."""
    with site.conf.open("a") as file:
        file.write(f'maxmind_url = "{server.url}/databases"\n')
    site.environment |= {"NETSAGE_MAXMIND_ACCOUNT": "12345", "NETSAGE_MAXMIND_LICENSE_KEY": KEY}
    for name, database in (("City", CITY), ("ASN", ASN)):
        body = archive(**{f"GeoLite2_{name}__mmdb": database})
        path = f"/databases/GeoLite2-{name}/download?suffix=tar.gz"
        offer(server, path, body, account=f"12345:{KEY}", **more)
        offer(server, f"{path}.sha256", f"{sha256(body)}  GeoLite2-{name}_20261118.tar.gz\n".encode(), account=f"12345:{KEY}")


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# What is fetched


def test_maxminds_databases_are_fetched_with_the_key_and_only_again_when_they_changed(site: Site, server: Far) -> None:
    maxmind(site, server, etag='"of-today"', modified="Wed, 18 Nov 2026 10:00:00 GMT")
    outcome = site.update("city", "asn")
    assert outcome.code == 0
    first, second = outcome.out.decode().splitlines()
    assert first.startswith("city: fetched from localhost: built 20")
    assert first.endswith(", 40 entries, its checksum is right")
    assert second.endswith(", 18 entries, its checksum is right")
    assert {name: content for name, (content, _) in site.files().items()} == {TABLES["city"]: CITY, TABLES["asn"]: ASN}
    assert server.statuses() == [200] * 4
    before = site.files()

    again = site.update()
    assert again.code == 0
    assert [line for line in again.out.decode().splitlines() if "not fetched" not in line] == ["city: unchanged", "asn: unchanged"]
    assert server.statuses() == [304, 304]
    assert site.files() == before
    assert site.leftovers() == []
    told = "".join(each.out.decode() + each.err for each in (outcome, again)) + (site.tables / ".update" / "memory.json").read_text()
    assert KEY not in told


def test_the_key_may_be_in_a_file(site: Site, server: Far, tmp_path: Path) -> None:
    maxmind(site, server)
    (tmp_path / "key").write_text(f"{KEY}\n")
    del site.environment["NETSAGE_MAXMIND_LICENSE_KEY"]
    assert site.update("city", NETSAGE_MAXMIND_LICENSE_KEY_FILE=str(tmp_path / "key")).code == 0


def test_the_key_goes_to_no_other_host_that_is_redirected_to(site: Site, server: Far, tls: Path) -> None:
    maxmind(site, server)
    with far(tls) as store:
        body = server.files["/databases/GeoLite2-City/download?suffix=tar.gz"].body
        offer(store, "/signed?for=an-hour", body)
        for host in (f"https://127.0.0.1:{store.port}", store.url):  # Another host, and another port of the same one.
            server.files["/databases/GeoLite2-City/download?suffix=tar.gz"].to = f"{host}/signed?for=an-hour"
            (site.tables / TABLES["city"]).unlink(missing_ok=True)
            assert site.update("city").code == 0
        assert [path for path, _, _ in store.asked] == ["/signed?for=an-hour"] * 2
        assert all("Authorization" not in headers for _, _, headers in store.asked)
    assert (site.tables / TABLES["city"]).read_bytes() == CITY
    asked = [headers for path, _, headers in server.asked if path.endswith("tar.gz")]
    assert len(asked) == 2
    assert all("Authorization" in headers for headers in asked)


def test_a_redirect_within_the_host_keeps_the_key(site: Site, server: Far) -> None:
    maxmind(site, server)
    path = "/databases/GeoLite2-City/download?suffix=tar.gz"
    server.files["/moved"] = server.files[path]
    server.files[path] = File(to="/moved")
    assert site.update("city").code == 0


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        pytest.param("city", "/city.mmdb", CITY, id="an mmdb"),
        pytest.param("city", "/city.mmdb.gz", gzip.compress(CITY), id="an mmdb, gz"),
        pytest.param("asn", "/x?suffix=tar.gz", archive(of_them__mmdb=ASN), id="an mmdb in a tar.gz"),
        pytest.param("scireg", "/scireg.mmdb", SCIREG, id="a registry"),
        pytest.param("caida", "/c.csv.gz", gzip.compress(CSV), id="a csv, gz"),
    ],
)
def test_a_table_is_taken_in_the_forms_that_it_comes_in(site: Site, server: Far, name: str, path: str, body: bytes) -> None:
    outcome = site.update(name, **{f"NETSAGE_{name.upper()}_URL": offer(server, path, body)})
    assert (outcome.code, outcome.err) == (0, "")
    plain = {"city": CITY, "asn": ASN, "scireg": SCIREG, "caida": CSV}[name]
    assert [(file, content) for file, (content, _) in site.files().items()] == [(TABLES[name], plain)]


def test_caidas_own_file_becomes_the_csv(site: Site, server: Far) -> None:
    body = b'# format:org_id|org_name\nONE|One, "1"\n# format:aut|org_id\n64500|ONE\n64501|TWO\nnonsense\n'
    outcome = site.update("caida", NETSAGE_CAIDA_URL=offer(server, "/latest.as-org2info.txt.gz", gzip.compress(body)))
    assert outcome.code == 0
    assert outcome.out == b"caida: fetched from localhost: 2 entries\n"
    assert outcome.err == "caida: line 6: is no row of CAIDA's as-org2info: left out\n"
    assert site.files()["CAIDA-org-lookup.csv"][0] == b'64500,"One, ""1"""\n64501,Unknown\n'


@pytest.mark.parametrize("packed", [False, True])
def test_the_registrys_export_becomes_its_mmdb(site: Site, server: Far, packed: bool) -> None:
    export = b' [{"addresses": ["192.0.2.0/24", "nonsense"], "org_name": "One"}, 5]'
    url = offer(server, "/scireg", archive(scireg__json=export) if packed else export)
    outcome = site.update("scireg", NETSAGE_SCIREG_URL=url)
    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        "scireg: .[0].addresses[1]: is not a prefix such as 192.0.2.0/24 or 2001:db8::/32: left out",
        "scireg: .[1]: is not an object: left out",
    ]
    assert b'{\\"org_name\\":\\"One\\"' not in outcome.out
    shown = run("lookups", "show", "192.0.2.7", lookups=site.tables).out.decode()
    assert '\\"org_name\\":\\"One\\"' in shown


def test_member_lists_are_fetched_as_they_are_or_converted(site: Site, server: Far) -> None:
    toml = b'asns = [3]\n[members]\n"198.51.100.0/24" = "B"\n'
    urls = f"{offer(server, '/lists/net-a-members-list.rb', RUBY)} , {offer(server, '/b.toml', toml)}"
    outcome = site.update("members", NETSAGE_MEMBERS_URLS=urls)
    assert outcome.code == 0
    assert outcome.out.decode().splitlines() == [
        "members/net-a: fetched from localhost: 1 entries",
        "members/b: fetched from localhost: 1 entries",
    ]
    assert outcome.err.splitlines() == ["members/net-a:2: '444.0.0.0/8' is not a prefix such as 192.0.2.0/24: left out"]
    files = site.files()
    assert files["members/b.toml"][0] == toml
    assert files["members/net-a.toml"][0].startswith(b"# Converted from net-a-members-list.rb.\nasns = [217]\n")
    assert site.update("members/b", NETSAGE_MEMBERS_URLS=urls).out == b"members/b: unchanged\n"
    assert site.files() == files
    assert run("check", lookups=site.tables).code == 0


def test_http_is_for_this_machine(site: Site) -> None:
    with far(None) as plain:
        assert site.update("caida", NETSAGE_CAIDA_URL=offer(plain, "/c", CSV)).code == 0


def test_a_table_that_has_no_checksum_beside_it_is_taken_and_one_that_has_is_compared(site: Site, server: Far, caida: File) -> None:
    assert b"checksum" not in site.update("caida").out
    caida.body += b"64502,Three\n"
    offer(server, "/caida.csv.sha256", sha256(caida.body).upper().encode())
    assert b"4 entries" not in site.update("caida").out
    (site.tables / "CAIDA-org-lookup.csv").touch()
    assert site.update("caida").out == b"caida: fetched from localhost: 3 entries, its checksum is right\n"
    caida.body += b"64503,Four\n"
    assert site.refuses("caida") == "its checksum is not the one that is published: the next run tries it again"


def test_a_new_table_takes_the_place_of_the_old_one_at_once(site: Site, caida: File) -> None:  # noqa: ARG001
    """Who reads the old one reads it to its end."""
    with (site.tables / "CAIDA-org-lookup.csv").open("rb") as file:
        assert site.update("caida").code == 0
        assert file.read() == b"64500,Old\n"
    assert (site.tables / "CAIDA-org-lookup.csv").read_bytes() == CSV


# What is unchanged


def test_without_an_etag_the_same_bytes_are_not_put_there_again(site: Site, server: Far, caida: File) -> None:  # noqa: ARG001
    assert b"fetched" in site.update("caida").out
    before = site.files()
    assert site.update("caida").out == b"caida: unchanged\n"
    assert site.files() == before
    assert [status for path, status, _ in server.asked if path == "/caida.csv"] == [200, 200]


@pytest.mark.parametrize("said", [{"etag": 'W/"1"'}, {"modified": "Wed, 18 Nov 2026 10:00:00 GMT"}])
def test_an_etag_or_a_date_alone_is_enough(site: Site, server: Far, said: dict[str, str]) -> None:
    url = offer(server, "/c", CSV, **said)
    site.update("caida", NETSAGE_CAIDA_URL=url)
    server.statuses()
    assert site.update("caida", NETSAGE_CAIDA_URL=url).out == b"caida: unchanged\n"
    assert server.statuses() == [304]
    offer(server, "/c", CSV + b"1,New\n", **{name: value.replace("1", "2") for name, value in said.items()})
    assert b"3 entries" in site.update("caida", NETSAGE_CAIDA_URL=url).out


@pytest.mark.parametrize(
    "touched",
    [
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: path.write_bytes(b"1,Mine\n2,Mine\n"), id="replaced"),
        pytest.param(lambda path: (path.parent / ".update" / "memory.json").write_bytes(b"{"), id="memory damaged"),
        pytest.param(lambda path: (path.parent / ".update" / "memory.json").write_bytes(b'{"caida": 5}'), id="memory of something else"),
        pytest.param(lambda path: (path.parent / ".update" / "memory.json").write_bytes(b"[]"), id="memory that is a list"),
    ],
)
def test_a_table_that_somebody_touched_is_fetched_again(site: Site, server: Far, touched: Callable[[Path], Any]) -> None:
    site.environment["NETSAGE_CAIDA_URL"] = offer(server, "/c", CSV, etag='"1"')
    site.update("caida")
    touched(site.tables / "CAIDA-org-lookup.csv")
    assert site.update("caida").out == b"caida: fetched from localhost: 2 entries\n"
    assert (site.tables / "CAIDA-org-lookup.csv").read_bytes() == CSV


def test_another_address_is_another_table(site: Site, server: Far) -> None:
    site.update("caida", NETSAGE_CAIDA_URL=offer(server, "/one", CSV, etag='"1"'))
    assert b"fetched" in site.update("caida", NETSAGE_CAIDA_URL=offer(server, "/two", CSV, etag='"1"')).out


# What is refused


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"account": "else:else"}, "it refuses the account or the licence key (401): correct them, or ask for access"),
        ({"status": 403}, "it refuses the account or the licence key (403): correct them, or ask for access"),
        ({"status": 404}, "it has nothing at that address (404): correct the address"),
        ({"status": 429}, "it was asked too often (429): ask it less often"),
        ({"status": 503}, "it answers with status 503: the next run tries it again"),
        ({"cut": 10}, "the connection was lost before all was there: the next run tries it again"),
        ({"cut": 10, "chunked": True}, "the connection was lost before all was there: the next run tries it again"),
        ({"cut": 0}, "the connection was lost before all was there: the next run tries it again"),
        ({"endless": True}, "it sends more than 50,000 bytes: is the address right? else raise limit_bytes"),
        ({"to": "/caida.csv"}, "it redirects more than 5 times: correct the address"),
        ({"to": "http://example.org/"}, f"it redirects to an address that begins with http://, {OURS}: correct the address"),
        ({"to": "http://localhost/"}, "it redirects to an address that begins with http://: correct the address"),
        ({"to": "ftp://localhost/"}, "it redirects to an address that does not begin with http:// or https://: correct the address"),
        ({"to": "https://user:word@localhost/"}, "it redirects to an address that holds a user or a password: correct the address"),
        ({"to": "https://localhost:0/"}, "it redirects to an address that names no host or port that can be used: correct the address"),
        ({"to": "https://nowhere.invalid/"}, "its name is not known: correct the address, or see to DNS"),
        ({"body": b""}, "holds no entries"),
        ({"body": b"<html>\n"}, "holds no entries"),
        ({"body": b"<html>\n<body>\nno\n"}, "line 2: not 'asn,organization': the first field must be a whole number (and 1 more)"),
        ({"body": b"1,caf\xe9\n"}, "after line 0: not UTF-8: save it as UTF-8"),
        ({"body": gzip.compress(CSV * 50)[:-9]}, "is truncated or damaged: the next run fetches it again"),
        ({"body": b"\x1f\x8bnonsense"}, "is truncated or damaged: the next run fetches it again"),
        (
            {"body": gzip.compress(b"1,A\n" * 20_000)},
            "is longer than 50,000 bytes when it is unpacked: is it the right file? else raise limit_bytes",
        ),
        ({"body": archive(a__csv=CSV, b__csv=CSV)}, "is an archive with 2 files that end in .csv: one is wanted"),
        ({"body": archive(a__txt=CSV)}, "is an archive with 0 files that end in .csv: one is wanted"),
        (
            {"body": gzip.compress(gzip.decompress(archive(a__csv=CSV * 99))[:3_000])},
            "is truncated or damaged: the next run fetches it again",
        ),
    ],
)
def test_what_a_server_does_wrong_is_one_line(site: Site, caida: File, answer: dict[str, Any], why: str) -> None:
    with site.conf.open("a") as file:
        file.write("limit_bytes = 50_000\n")
    for name, value in answer.items():
        setattr(caida, name, value)
    assert site.refuses("caida") == why
    assert site.leftovers() == []


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"READ_S": 0.2}, "it does not answer: the next run tries it again"),
        ({"WHOLE_S": 0.5}, "it was not all there after 0.5 s: the next run tries it again"),
    ],
)
def test_a_server_that_is_too_slow_is_left(
    site: Site, caida: File, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], why: str
) -> None:
    caida.pause_s = 0.1 if "WHOLE_S" in limits else 1
    for name, seconds in limits.items():
        monkeypatch.setattr(fetch, name, seconds)
    began = time.monotonic()
    assert site.refuses("caida") == why
    assert time.monotonic() - began < 3


def test_servers_that_cannot_be_reached_or_trusted(site: Site, server: Far, caida: File, tls: Path) -> None:  # noqa: ARG001
    trusted = site.refuses("caida", SSL_CERT_FILE=str(tls / "other.pem"))
    assert trusted.startswith("its certificate is not to be trusted: ")
    assert trusted.endswith(": SSL_CERT_FILE names an authority of your own")
    with far(None) as plain:
        wrong = site.refuses("caida", NETSAGE_CAIDA_URL=plain.url.replace("http:", "https:"))
        assert wrong == "it does not speak TLS there: correct the address"
    down = site.refuses("caida", NETSAGE_CAIDA_URL=plain.url)
    assert down == "no connection (Connection refused): the next run tries it again"


def test_maxminds_checksum_must_be_there_and_right(site: Site, server: Far) -> None:
    maxmind(site, server)
    checksum = server.files["/databases/GeoLite2-City/download?suffix=tar.gz.sha256"]
    checksum.body = b"0" * 64 + b"  GeoLite2-City.tar.gz\n"
    assert site.refuses("city") == "its checksum is not the one that is published: the next run tries it again"
    checksum.body = b"<html>"
    assert site.refuses("city") == "its checksum is no sha256: correct the address"
    checksum.status = 503
    assert site.refuses("city") == "its checksum: it answers with status 503: the next run tries it again"


def test_a_wrong_key_is_said_without_it(site: Site, server: Far) -> None:
    maxmind(site, server)
    wrong = site.refuses("city", NETSAGE_MAXMIND_LICENSE_KEY="another-key")
    assert wrong == "it refuses the account or the licence key (401): correct them, or ask for access"


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("city", ASN, f"is no City database (its type is GeoLite2-ASN; {NONE} country and location): put one there"),
        ("city", SCIREG, f"is no City database (its type is GeoLite2-City; {NONE} country and location): put one there"),
        ("asn", CITY, f"is no ASN database (its type is GeoLite2-City; {NONE} autonomous_system_number): put one there"),
        ("scireg", CITY, f"is no science registry (its type is GeoLite2-City; {NONE} JSON object as name of the city): put one there"),
        ("city", CSV, "is no MaxMind DB file, or is truncated: fetch it again"),
        ("city", CITY[:-100], "is no MaxMind DB file, or is truncated: fetch it again"),
        ("city", archive(a__mmdb=CITY[: len(CITY) // 2]), "is no MaxMind DB file, or is truncated: fetch it again"),
        ("scireg", b'{"addresses": []}', "is not a JSON list of entries"),
        ("scireg", b"[{", "line 1: is not JSON: unexpected end of data"),
        ("scireg", b"[]", "holds no prefix that can be used"),
    ],
)
def test_a_table_of_another_kind_is_refused(site: Site, server: Far, name: str, body: bytes, why: str) -> None:
    site.tables.mkdir()
    (site.tables / TABLES[name]).write_bytes({"city": CITY, "asn": ASN, "scireg": SCIREG}[name])
    assert site.refuses(name, **{f"NETSAGE_{name.upper()}_URL": offer(server, "/x", body)}) == why


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (RUBY + b"@members['b'] = { '192.0.2.0/24' => 'A' }", "holds 2 lists: put each into a file of its own"),
        (b"puts 1\n", "holds no member list: none of its lines begins with @members['name'] = {"),
        (b"# caf\xe9", "is not UTF-8 (byte 5): have it saved as UTF-8"),
    ],
)
def test_a_ruby_file_that_is_no_member_list_is_refused(site: Site, server: Far, body: bytes, why: str) -> None:
    outcome = site.update(NETSAGE_MEMBERS_URLS=offer(server, "/a-members-list.rb", body))
    assert outcome.code == 1
    assert outcome.err.splitlines()[0] == f"members/a: refused: {why}; {site.tables}/members/a.toml is still missing"


@pytest.mark.parametrize("damage", [b"\xc4", b"\x45\xff"])
def test_a_database_of_which_its_reader_dies_or_chokes_is_refused(site: Site, server: Far, tmp_path: Path, damage: bytes) -> None:
    """The name of a key becomes a number, which the C reader takes for an address in memory; or it is no UTF-8."""
    record = {"autonomous_system_number": 2, "a key": "a text"}
    whole = write(tmp_path / "x", {"10.0.0.0/8": {"autonomous_system_number": 1}, "11.0.0.0/8": record}).read_bytes()
    key = whole.index(b"\x45a key")
    body = whole[:key] + damage + whole[key + len(damage) :]
    assert site.refuses("asn", NETSAGE_ASN_URL=offer(server, "/x", body)) == "is damaged: fetch it again"
    site.tables.mkdir(exist_ok=True)
    (site.tables / TABLES["asn"]).write_bytes(body)
    outcome = run("lookups", "info", lookups=site.tables)
    assert (outcome.code, outcome.err) == (1, f"{site.tables}/{TABLES['asn']}: is damaged: fetch it again\n")


def test_a_record_that_is_damaged_is_found(site: Site, server: Far, tmp_path: Path) -> None:
    """The file opens, and its first records are as they should be."""
    whole = bytearray(write(tmp_path / "x", {f"10.{n}.0.0/16": {"autonomous_system_number": n + 1} for n in range(200)}).read_bytes())
    body = whole.index(b"autonomous_system_number")
    whole[body + 1_000 : body + 1_100] = b"\xff" * 100
    assert site.refuses("asn", NETSAGE_ASN_URL=offer(server, "/x", bytes(whole))) == "is damaged: fetch it again"


def test_a_table_with_less_than_half_of_the_entries_is_only_taken_by_force(site: Site, server: Far) -> None:
    def rows(count: int) -> bytes:
        return b"".join(b"%d,Name\n" % number for number in range(count))

    url = offer(server, "/c", rows(100))
    site.update("caida", NETSAGE_CAIDA_URL=url)
    offer(server, "/c", rows(49))
    assert site.refuses("caida", NETSAGE_CAIDA_URL=url) == "has 49 entries, and the table in use 100: look at it; --force takes it"
    assert site.update("caida", "--force", NETSAGE_CAIDA_URL=url).code == 0
    offer(server, "/c", rows(25))
    assert site.update("caida", NETSAGE_CAIDA_URL=url).code == 0
    (site.tables / "CAIDA-org-lookup.csv").write_bytes(b"broken\nbroken\n")
    offer(server, "/c", rows(1))
    assert site.update("caida", NETSAGE_CAIDA_URL=url).code == 0


# Runs


def test_what_fails_stops_nothing_else(site: Site, server: Far, caida: File) -> None:  # noqa: ARG001
    maxmind(site, server)
    server.files["/databases/GeoLite2-City/download?suffix=tar.gz"].status = 500
    outcome = site.update(NETSAGE_SCIREG_URL=offer(server, "/scireg", b"nonsense"))
    assert outcome.code == 1
    assert [line.partition(":")[0] for line in outcome.out.decode().splitlines()] == ["communities", "members", "asn", "caida"]
    assert [line.partition(":")[0] for line in outcome.err.splitlines()] == ["city", "scireg", "2 of 4 failed"]


def test_a_source_without_an_address_is_said_and_is_no_failure_unless_it_is_named(site: Site) -> None:
    outcome = site.update()
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.decode().splitlines()
    assert len(lines) == 6
    assert lines[2] == "caida: not fetched: it has no address: set NETSAGE_CAIDA_URL"
    assert not site.tables.exists()
    named = site.update("caida", "members")
    assert named.code == 2
    assert named.err.splitlines() == [lines[2], "members: not fetched: it has no address: set NETSAGE_MEMBERS_URLS"]


def test_a_source_that_there_is_not_is_said(site: Site) -> None:
    outcome = site.update("citty")
    assert outcome.code == 2
    assert outcome.err == "citty: no such source: there are asn, caida, city, communities, members, scireg\n"


def test_another_update_at_work_is_waited_for_by_the_operator(site: Site, caida: File) -> None:  # noqa: ARG001
    (site.tables / ".update").mkdir()
    held = os.open(site.tables / ".update", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    outcome = site.update("caida")
    assert (outcome.code, outcome.err) == (2, f"{site.tables}: another update is at work there: wait for it\n")
    os.close(held)
    assert site.update("caida").code == 0


def test_a_directory_that_cannot_be_written_is_one_line(site: Site, caida: File) -> None:  # noqa: ARG001
    (site.tables / ".update").touch()
    outcome = site.update("caida")
    assert outcome.code == 2
    assert outcome.err == f"{site.tables}/.update: cannot be written: File exists: tables are in NETSAGE_LOOKUPS\n"


def test_a_table_in_whose_place_a_directory_is_is_refused(site: Site, server: Far) -> None:
    (site.tables / TABLES["caida"]).mkdir(parents=True)
    why = site.refuses("caida", NETSAGE_CAIDA_URL=offer(server, "/c", CSV))
    assert why == "cannot be read or written: Is a directory"


def begin(site: Site, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "lookups", "update", "--conf", site.conf, *arguments],
        env=surroundings(site.tables, **site.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_in_the_middle_leaves_the_old_table_and_the_next_one_takes_the_new(
    site: Site, caida: File, server: Far, number: signal.Signals
) -> None:
    before = site.files()
    caida.pause_s = 0.5
    process = begin(site, "caida")
    fetched = site.tables / ".update" / "fetched"
    wait_for(fetched.exists)
    process.send_signal(number)
    _, told = process.communicate(timeout=5)
    assert process.returncode == (130 if number == signal.SIGTERM else -9)
    assert told == ("interrupted: the tables are whole, old or new\n" if number == signal.SIGTERM else "")
    assert site.files() == before
    assert "fetched" in site.leftovers()
    caida.pause_s = 0
    assert site.update("caida").code == 0
    assert (site.tables / "CAIDA-org-lookup.csv").read_bytes() == CSV
    assert site.leftovers() == []
    assert len(server.asked) >= 2


def test_every_so_many_hours_it_runs_again_and_a_failure_does_not_end_it(site: Site, server: Far, caida: File) -> None:
    table = site.tables / "CAIDA-org-lookup.csv"
    process = begin(site, "caida", "--every", "0.0001")
    assert process.stdout is not None
    assert process.stdout.readline() == "caida: fetched from localhost: 2 entries\n"
    assert table.read_bytes() == CSV
    caida.status = 500
    caida.body = CSV + b"64502,Three\n"
    time.sleep(1.5)
    assert table.read_bytes() == CSV
    if len(server.asked) > 30:
        process.kill()
        pytest.fail("it does not wait between two runs")
    caida.status = 200
    fetched = next(line for line in process.stdout if "unchanged" not in line)
    assert fetched == "caida: fetched from localhost: 3 entries\n"
    assert table.read_bytes() == caida.body
    process.terminate()
    _, err = process.communicate(timeout=5)
    assert process.returncode == 0, "a service that is stopped did not fail"
    lines = err.splitlines()
    assert lines.count("1 of 1 failed") == len(lines) / 3 >= 1


def test_what_failed_is_tried_again_alone_before_the_next_run_and_ever_more_rarely(
    site: Site, server: Far, caida: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an hour between two runs. Nothing really waits: a wait moves the clock of the schedule."""
    site.environment |= {"NETSAGE_LOOKUPS": str(site.tables), "NETSAGE_SCIREG_URL": offer(server, "/scireg.mmdb", SCIREG, etag='"1"')}
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    waits: list[int] = []
    mended = (6, 8)  # The numbers of the waits behind which the server has the file.

    def sleep(seconds: float) -> None:
        waits.append(round(seconds))
        caida.status = 200 if len(waits) in mended else 500
        if len(waits) == 9:
            raise KeyboardInterrupt

    clock = SimpleNamespace(
        sleep=sleep, monotonic=lambda: sum(waits), time=lambda: 1e9 + sum(waits), strftime=time.strftime, gmtime=time.gmtime
    )
    monkeypatch.setattr(lookups, "time", clock)
    monkeypatch.setattr(lookups, "JITTER", 0)
    caida.status = 500
    with pytest.raises(SystemExit) as ended:
        lookups.update_tables.main(["caida", "scireg", "--every", "0.5", "--conf", str(site.conf)])
    assert ended.value.code == 0
    assert waits == [60, 120, 240, 480, 900, 1800, 1800, 60, 1740]
    alone, both = ["/caida.csv"], ["/caida.csv", "/scireg.mmdb"]
    assert [path for path, _, _ in server.asked if not path.endswith(".sha256")] == [*both, *4 * alone, *3 * both, *alone]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("the next try")]
    assert said[0] == "the next try: 2001-09-09 01:47 UTC"
    assert len(said) == 7


def test_a_directory_that_is_held_does_not_end_a_schedule(site: Site, caida: File) -> None:  # noqa: ARG001
    (site.tables / ".update").mkdir()
    held = os.open(site.tables / ".update", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    process = begin(site, "caida", "--every", "0.0001")
    assert process.stderr is not None
    assert process.stderr.readline() == f"{site.tables}: another update is at work there: wait for it\n"
    os.close(held)
    wait_for(lambda: (site.tables / "CAIDA-org-lookup.csv").read_bytes() == CSV)
    process.terminate()
    process.communicate(timeout=5)


@pytest.mark.parametrize(("size", "why"), [(20, "cannot be read or written: File too large"), (100, None)])
def test_a_disk_that_takes_no_more_costs_one_line_and_no_table(site: Site, caida: File, size: int, why: str | None) -> None:
    """The first limit keeps the table from being written, the second one only what is remembered of it."""
    process = begin(site, "caida", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    out, err = process.communicate(timeout=10)
    table = site.tables / "CAIDA-org-lookup.csv"
    if why:
        assert err == f"caida: refused: {why}; {table} stays as it is\n1 of 1 failed\n"
        assert table.read_bytes() == b"64500,Old\n"
    else:
        assert (out, err) == ("caida: fetched from localhost: 2 entries\n", "")
        assert table.read_bytes() == caida.body
    assert site.update("caida").out == b"caida: fetched from localhost: 2 entries\n"


# Settings


@pytest.mark.parametrize(
    ("variable", "value", "wrong"),
    [
        ("CITY_URL", "http://example.org/x", f"it begins with http://, {OURS}: write https://host/path"),
        ("ASN_URL", "ftp://x", "it does not begin with http:// or https://: write https://host/path"),
        ("CAIDA_URL", "https://me:word@x/", "it holds a user or a password: write https://host/path"),
        ("SCIREG_URL", "https:///x", "it names no host or port that can be used: write https://host/path"),
        ("COMMUNITIES_URL", "https://[x", "it is no URL: write https://host/path"),
        (
            "MEMBERS_URLS",
            "https://x/a.toml,https://x/b.csv",
            "address 2 of 2 does not end in a name with .toml or .rb: write https://host/NAME.toml",
        ),
        ("MEMBERS_URLS", "https://x/.toml", "address 1 of 1 does not end in a name with .toml or .rb: write https://host/NAME.toml"),
        ("MEMBERS_URLS", "https://x/a.toml,https://y/a-members-list.rb", "two of the lists have the same name: rename one"),
        ("MAXMIND_LICENSE_KEY", KEY, "account and licence key belong together: set both, or none"),
    ],
)
def test_a_wrong_setting_is_one_line_without_its_value(site: Site, variable: str, value: str, wrong: str) -> None:
    outcome = site.update(**{f"NETSAGE_{variable}": value})
    assert (outcome.code, outcome.out) == (2, b"")
    assert outcome.err == f"{site.conf}: {variable.lower()}: that value (from NETSAGE_{variable}): {wrong}\n"


def test_an_account_is_a_number_and_has_a_key(site: Site) -> None:
    without = site.update(NETSAGE_MAXMIND_ACCOUNT="12")
    assert without.code == 2
    assert without.err.endswith(": account and licence key belong together: set both, or none\n")
    wrong = site.update(NETSAGE_MAXMIND_ACCOUNT="me", NETSAGE_MAXMIND_LICENSE_KEY=KEY)
    assert wrong.err == f"{site.conf}: maxmind_account: 'me' (from NETSAGE_MAXMIND_ACCOUNT): an account id is a number\n"


def test_all_that_is_wrong_with_the_settings_is_said_at_once(site: Site) -> None:
    site.conf.write_text("city_url = 'x'\nmaxmind_url = 'http://example.org'\nlimit_bytes = 0\ncity_urls = ''\n")
    assert [line.removeprefix(f"{site.conf}: ").partition(":")[0] for line in site.update().err.splitlines()] == [
        "maxmind_url",
        "city_url",
        "limit_bytes",
        "city_urls",
    ]


def test_settings_that_are_not_there_are_said(site: Site, tmp_path: Path) -> None:
    outcome = run("lookups", "update", "--conf", tmp_path / "none.toml", lookups=site.tables)
    assert (outcome.code, outcome.err) == (2, f"{tmp_path}/none.toml: cannot be read: No such file or directory\n")
