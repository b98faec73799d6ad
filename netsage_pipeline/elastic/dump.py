"""Dumping records out of Elasticsearch: all of a range of time, as one point in time holds them, in an order that every run repeats."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import orjson
from elastic_transport import SerializationError, TransportError
from elasticsearch import ApiError, Elasticsearch
from tqdm import tqdm

from netsage_pipeline.elastic.cluster import STOPS, answered, in_a_line, is_refusal, reason_of, refusal_of
from netsage_pipeline.elastic.partfile import Out
from netsage_pipeline.elastic.spill import Record, Spill
from netsage_pipeline.jsonvalues import has_nan
from netsage_pipeline.progress import PROGRESS_S

#: How long the server keeps the point in time after each request, should nobody close it: after kill -9, or while a pipe stands still.
KEEP_ALIVE = "5m"

#: Records of a page at most, and about how many bytes.
PAGE_RECORDS, PAGE_BYTES = 5_000, 8_000_000

#: Seconds after which a server that has gone away is given up.
PATIENCE_S = 30.0

#: Statuses that may pass: too many requests, a node or shards that are not there.
_PASSING = (429, 502, 503, 504)

_DATES = {"date", "date_nanos"}
_WHOLE = {"byte", "short", "integer", "long"}
_NUMBERS = {*_WHOLE, "half_float", "float", "double", "scaled_float", "unsigned_long"}

#: Comes behind every number that the server gives the documents of a shard.
_LAST_DOCUMENT = 2**63 - 1


class NotDumped(Exception):
    """Why there is no complete dump; one line: where, what, what to do."""


class Wanted(NamedTuple):
    """What is to be dumped."""

    indices: str  #: names, patterns, separated by commas
    since: str  #: ISO 8601, inclusive
    until: str  #: exclusive
    query: str  #: Lucene's syntax, or JSON; "" for all
    sort: str
    time: str  #: the field that since and until are about
    id_field: str  #: keyword copy of the id, "" for none

    @property
    def filter(self) -> dict[str, Any]:
        span = {"gte": self.since, "lt": self.until, "format": "strict_date_optional_time_nanos"}
        filters: list[dict[str, Any]] = [{"range": {self.time: span}}]
        if self.query.startswith("{"):
            filters.append(json.loads(self.query))
        elif self.query:
            filters.append({"query_string": {"query": self.query}})
        return {"bool": {"filter": filters}}

    def options(self) -> dict[str, str]:
        """By the names of the options, as the state of a dump has them."""
        names = ("--index", "--from", "--to", "--query", "--sort", "--time", "--id-field")
        return dict(zip(names, self, strict=True))


class Order(NamedTuple):
    """How the server sorts."""

    by: dict[str, Any]
    id_field: str  #: the keyword copy of the id that breaks ties; "" if there is none, and we have to

    @property
    def sort(self) -> list[dict[str, Any]]:
        """What ends with _shard_doc differs from one point in time to the next among records that are otherwise equal."""
        copy = {"order": "asc", "unmapped_type": "keyword"}
        ties = [{self.id_field: copy}, {"_index": {"order": "asc"}}] if self.id_field else []
        return [self.by, *ties, {"_shard_doc": {"order": "asc"}}]

    def behind(self, value: Any) -> list[Any]:
        """A search_after that passes over all records of a value. Null stands behind all keywords."""
        return [value, *([None, None] if self.id_field else []), _LAST_DOCUMENT]


class Summary(NamedTuple):
    """What a dump did."""

    records: int
    resumed: int  #: so many of them were there already
    sorted_here: bool
    closed: list[str]  #: indices that cannot be searched
    seconds: float

    def lines(self) -> list[str]:
        rate = (self.records - self.resumed) / self.seconds if self.seconds else 0
        lines = [f"dumped         {self.records:>12,}  records in {self.seconds:.1f} s, {rate:,.0f} records/s"]
        if self.resumed:
            lines.append(f"               {self.resumed:>12,}  of them were there already")
        if self.sorted_here:
            lines.append(f"               {'':>12}  ties were broken here: not all records hold a keyword copy of their id")
        if self.closed:
            lines.append(f"               {'':>12}  not in it, because they are closed: {', '.join(self.closed)}")
        return lines


def dump(server: Elasticsearch, wanted: Wanted, out: Out) -> Summary:
    """Writes all records, a line each, behind those that `out` holds already. NotDumped, SettingsError; OSError of `out`."""
    began = time.monotonic()
    with out:
        order = _order(server, wanted)
        closed = _closed(server, wanted.indices)
        with point_in_time(server, wanted.indices) as pit:
            total, order = _counted(pit, wanted, order)
            resumed = out.mark.records
            if not total and not resumed:
                found = " that the query finds" if wanted.query else ""
                raise NotDumped(f"{wanted.indices}: no record from {wanted.since} to {wanted.until}{found}")
            written = _write(pit, wanted, order, out, total)
        if written != total:
            changed = "what an earlier run dumped has changed since: " if resumed else ""
            raise NotDumped(f"{wanted.indices}: holds {total:,} records, but the dump {written:,}: {changed}{out.anew}")
        out.finish()
    return Summary(total, resumed, not order.id_field, closed, time.monotonic() - began)


def _write(pit: PointInTime, wanted: Wanted, order: Order, out: Out, total: int) -> int:
    """Writes the records behind the mark of `out`, value by value of what they are sorted by. Gives how many there are then."""
    written = out.mark.records
    value = out.mark.after
    spill = Spill(out.directory)

    def all_of_a_value_came() -> None:
        for each in spill.drain():
            out.write(each.line)
        out.whole(value)

    with contextlib.closing(spill), Counting(total, written) as progress:
        for page in _pages(pit, wanted, order, order.behind(value) if written else None):
            for hit in page:
                if hit.value != value:
                    if written:
                        all_of_a_value_came()
                    value = hit.value
                written += 1
                if order.id_field:
                    out.write(hit.record.line)
                else:
                    spill.add(hit.record)
            out.save()
            progress.show(len(page))
        all_of_a_value_came()
    return written


class Hit(NamedTuple):
    value: Any  #: what it is sorted by
    record: Record


def _pages(pit: PointInTime, wanted: Wanted, order: Order, after: list[Any] | None) -> Iterator[list[Hit]]:
    size = 100
    while True:
        found = pit.search(query=wanted.filter, sort=order.sort, size=size, search_after=after, track_total_hits=False)["hits"]["hits"]
        if not found:
            return
        hits = [_hit(each, wanted, order) for each in found]
        yield hits
        after = found[-1]["sort"]
        size = max(1, min(PAGE_RECORDS, PAGE_BYTES * len(hits) // sum(len(hit.record.line) for hit in hits)))


def _hit(found: dict[str, Any], wanted: Wanted, order: Order) -> Hit:
    """The source as it was indexed, but for the copy of the id, which is for dumps alone."""
    known_as, index = found["_id"], found["_index"]
    source = found.get("_source")
    if source is None:
        raise NotDumped(f"{index}: does not keep what was indexed (_source), so it cannot be dumped")
    if order.id_field and found["sort"][1] != known_as:
        raise NotDumped(f"{index}: {order.id_field} is not always a copy of the id: --id-field '' does without it")
    if source.get(wanted.id_field) == known_as:
        del source[wanted.id_field]
    try:
        line = line_of(source)
    except ValueError as error:
        raise NotDumped(f"{index}: record {known_as} {error}: leave it out with --query 'NOT _id:\"{known_as}\"'") from None
    return Hit(found["sort"][0], Record(known_as, index, line))


def line_of(source: dict[str, Any]) -> bytes:
    """JSON without a line break in it. ValueError, in words, if a number would be lost."""
    try:
        line = orjson.dumps(source)
    except TypeError:  # Whole numbers of more than 64 bits, halves of surrogate pairs: all of it may be in an index.
        line = json.dumps(source, separators=(",", ":")).encode()
    # Elasticsearch keeps 1e400 as it came where the field is not mapped. It was read as infinity, which became one of these.
    if (b"null" in line or b"Infinity" in line) and has_nan(source):
        raise ValueError("holds a number beyond 1.8e308, which would be lost")
    return line


def _order(server: Elasticsearch, wanted: Wanted) -> Order:
    """How to sort by the wanted field, whatever types the indices have it of. NotDumped if it cannot be."""
    try:
        found = server.field_caps(index=wanted.indices, fields=[name for name in (wanted.sort, wanted.time, wanted.id_field) if name])
    except ApiError as error:
        if error.status_code in (400, 404):
            raise NotDumped(f"{wanted.indices}: {_why(error)}: --index names another") from None
        raise NotDumped(f"Elasticsearch: {_why(error)}") from None
    except TransportError as error:
        where = "" if is_refusal(error) or isinstance(error, SerializationError) else ": is it running where the settings say?"
        raise NotDumped(f"Elasticsearch: {_why(error)}{where}") from None
    if not found["indices"]:
        what = "is closed: open it" if _closed(server, wanted.indices) else "no such index: --index names another"
        raise NotDumped(f"{wanted.indices}: {what}")
    types = set(found["fields"].get(wanted.time, {})) - {"unmapped"}
    if not types or types - _DATES:
        what = f"is {_and(types)}" if types else "is in none of its indices"
        raise NotDumped(f"{wanted.indices}: {wanted.time} {what}: --time names a date")
    capabilities = found["fields"].get(wanted.sort, {})
    types = set(capabilities) - {"unmapped"}
    if not types:
        raise NotDumped(f"{wanted.indices}: {wanted.sort} is in none of its indices: --sort names another field")
    how: dict[str, Any] = {"order": "asc", "missing": "_last", "unmapped_type": min(types)}
    if len(types) > 1:
        common = [name for name, kinds in (("date_nanos", _DATES), ("long", _WHOLE), ("double", _NUMBERS)) if types <= kinds]
        if not common:
            raise NotDumped(f"{wanted.indices}: {wanted.sort} is {_and(types)}, which have no order: --sort names another field")
        how["numeric_type"] = common[0]
    if not all(capabilities[name]["aggregatable"] for name in types):
        raise NotDumped(
            f"{wanted.indices}: {wanted.sort} is {_and(types)}, which cannot be sorted by: --sort names a date, a number or a keyword"
        )
    copy = {name: each["aggregatable"] for name, each in found["fields"].get(wanted.id_field, {}).items() if name != "unmapped"}
    return Order({wanted.sort: how}, wanted.id_field if copy == {"keyword": True} else "")


def _closed(server: Elasticsearch, indices: str) -> list[str]:
    """Those of the indices that are closed, which a pattern passes over in silence; none if the server does not tell."""
    with contextlib.suppress(ApiError, TransportError):
        found = server.indices.resolve_index(name=indices, expand_wildcards="closed")["indices"]
        return [each["name"] for each in found if "closed" in each["attributes"]]
    return []


def _and(types: set[str]) -> str:
    return " and ".join(sorted(types))


def _counted(pit: PointInTime, wanted: Wanted, order: Order) -> tuple[int, Order]:
    """How many records there are, and the order by the copies of their ids only if all have one (that it is one, the first one tells)."""
    try:
        found = pit.search(query=wanted.filter, sort=order.sort, size=1, track_total_hits=True)["hits"]
    except Unanswered as error:
        if error.refused:
            raise NotDumped(f"{_to_blame(pit, wanted)}: {error.refused}") from None
        raise
    total: int = found["total"]["value"]
    if order.id_field and total:
        without = {"bool": {"filter": [wanted.filter], "must_not": [{"exists": {"field": order.id_field}}]}}
        is_copy = all(each["sort"][1] == each["_id"] for each in found["hits"])
        if not is_copy or pit.search(query=without, size=0, track_total_hits=True)["hits"]["total"]["value"]:
            order = order._replace(id_field="")
    return total, order


def _to_blame(pit: PointInTime, wanted: Wanted) -> str:
    """What of a refused request to change."""
    try:
        pit.search(query=wanted.filter, size=0)
    except Unanswered:
        return "--query" if wanted.query else wanted.indices
    return "--sort"


class Unanswered(NotDumped):
    """A request failed for good; another run may do better."""

    def __init__(self, why: str, refused: str = "") -> None:
        super().__init__(f"Elasticsearch: {why}")
        self.refused = refused  #: what is wrong with the request, in the server's own words


class PointInTime:
    """Indices as they were when it was opened."""

    def __init__(self, server: Elasticsearch, known_as: str) -> None:
        self.server, self.known_as = server, known_as

    def search(self, *, size: int, **request: Any) -> Any:
        """The server's answer, of all shards. Tries again, with a quarter of the size, for PATIENCE_S. Unanswered."""
        failed = 0.0
        wait = 0.5
        while True:
            try:
                pit = {"id": self.known_as, "keep_alive": KEEP_ALIVE}
                answer = answered(partial(self.server.search, pit=pit, size=size, allow_partial_search_results=False, **request))
            except (ApiError, TransportError) as error:
                failed = failed or time.monotonic()
                if not _may_pass(error) or time.monotonic() - failed > PATIENCE_S:
                    raise _unanswered(error) from None
                time.sleep(wait)
                wait, size = wait * 2, (size + 3) // 4
                continue
            self.known_as = answer.get("pit_id", self.known_as)
            if answer["timed_out"] or answer["_shards"]["failed"]:
                raise Unanswered("some of its shards did not answer")
            return answer


def _may_pass(error: ApiError | TransportError) -> bool:
    if isinstance(error, ApiError):
        return error.status_code in _PASSING
    return not is_refusal(error) and not isinstance(error, SerializationError)


def _unanswered(error: ApiError | TransportError) -> Unanswered:
    return Unanswered(_why(error), _refused(error) if isinstance(error, ApiError) and error.status_code == 400 else "")


def _why(error: ApiError | TransportError) -> str:
    if isinstance(error, SerializationError):  # It would quote the answer.
        return "its answer is no JSON: is it Elasticsearch?"
    cause = _cause(error)
    if cause.get("type") == "search_context_missing_exception":
        return "it has lost its point in time, as after a restart or 5 minutes in which nothing was asked"
    return f"{refusal_of(cause)} (status {error.status_code})" if cause and isinstance(error, ApiError) else reason_of(error)


def _cause(error: ApiError | TransportError) -> dict[str, Any]:
    """What a shard said, where Elasticsearch itself only says that all failed; else {}."""
    found = error.body.get("error") if isinstance(error, ApiError) and isinstance(error.body, dict) else None
    if not isinstance(found, dict) or found.get("type") != "search_phase_execution_exception" or not found.get("root_cause"):
        return {}
    return cast(dict[str, Any], found["root_cause"][0])


def _refused(error: ApiError) -> str:
    """The reasons, without the places in a request that nobody sees."""
    reasons: list[str] = []
    inner: Any = _cause(error) or (error.body.get("error") if isinstance(error.body, dict) else None)
    while isinstance(inner, dict) and len(reasons) < 2:
        reasons.append(re.sub(r"^\[\d+:\d+\] ", "", in_a_line(inner.get("reason") or inner.get("type"))))
        inner = inner.get("caused_by")
    return ": ".join(reasons)


@contextlib.contextmanager
def point_in_time(server: Elasticsearch, index: str) -> Iterator[PointInTime]:
    """Opens a point in time, and closes it whatever happens: signals wait while it is being opened and closed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        try:
            opened = server.options(request_timeout=20).open_point_in_time(index=index, keep_alive=KEEP_ALIVE)
        except (ApiError, TransportError) as error:
            raise _unanswered(error) from None
        pit = PointInTime(server, opened["id"])
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield pit
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            with contextlib.suppress(ApiError, TransportError):  # It ends by itself after KEEP_ALIVE.
                server.options(request_timeout=10).close_point_in_time(id=pit.known_as)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Counting:
    """A bar on a terminal (records), a line now and then elsewhere. Both go to standard error."""

    def __init__(self, total: int, there: int) -> None:
        self._total, self._there, self._count = total, there, there
        tqdm.monitor_interval = 0  # Its thread would take the signals that wait for the point in time to be closed.
        self._bar = tqdm(total=total, initial=there, unit=" records", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, more: int) -> None:
        self._count += more
        self._bar.update(more)
        now = time.monotonic()
        if self._bar.disable and now - self._said > PROGRESS_S:
            self._said = now
            rate = (self._count - self._there) / (now - self._began)
            left = (self._total - self._count) / rate
            share = self._count / self._total if self._total else 1
            sys.stderr.write(
                f"{share:.0%} of {self._total:,} records, about {left:,.0f} s left; {self._count:,} came, {rate:,.0f} a second\n"
            )
