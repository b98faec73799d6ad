"""Documents into Elasticsearch, by threads that send what is there in bulk, until each is stored or refused for what it holds.

A document has an id of its own content, so any repetition writes the same document to the same place: what an answer does not say is
sent again, for ever. Only what the server refuses because of the document itself is given back.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog
from elasticsearch import ApiError, Elasticsearch

from netsage_pipeline import waits
from netsage_pipeline.elastic.cluster import is_refusal, reason_of, refusal_of
from netsage_pipeline.flow import Flow, Refusal, Stored

log = structlog.get_logger(__name__)

#: A request: at most so many documents, and no further one once they are so long together.
REQUEST_DOCUMENTS = 1_000
REQUEST_BYTES = 4_000_000

#: Requests that may be under way at once: while one is answered the next is on its way.
SENDERS = 2

#: Seconds until what failed is tried again: a random part of a time that doubles, so that senders do not come all at once.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0

#: Seconds after which it is prepared again though nothing failed: in a quiet time the server may have been replaced by an empty one.
PREPARED_S = 10.0

#: Seconds of waiting after which it says so.
PATIENCE_S = 2.0

#: Seconds for which a sender may go on when it is told to leave.
LEAVING_S = 1.0

#: What the answer is to hold; all of it takes longer to read than the documents to write.
_ANSWER = "errors,items.*.status,items.*.failure_store,items.*.error.type,items.*.error.reason,items.*.error.caused_by"

#: What is none of the document's faults, though its status is 400.
_NOT_THE_DOCUMENT = {
    "cluster_block_exception",
    "index_closed_exception",
    "invalid_alias_name_exception",
    "invalid_index_name_exception",
    "media_type_header_exception",
    "validation_exception",
}
_NOT_THE_DOCUMENT_EITHER = ("pipeline with id", "no write index", "only write ops with an op_type of create", "number of documents in the")


class Trouble(NamedTuple):
    """Why a request, or a part of it, is to be sent again after a while."""

    reason: str
    at_once: bool = False  #: whether that is worth saying at once


class Document(NamedTuple):
    """A document on its way."""

    batch: int
    target: str  #: its index
    action: bytes  #: the line of a bulk request that names index and id
    source: bytes  #: the line behind it


class Bulk:
    """The senders.

    prepare   called before the first request, and again after every failure, until it succeeds; raises what the client raises
    given     makes the flow again of a document's source, for a refusal
    most      documents in a request
    tells     whether each request that holds refused documents is worth a line
    """

    def __init__(
        self,
        client: Elasticsearch,
        prepare: Callable[[], object],
        given: Callable[[bytes], Flow],
        *,
        most: int = REQUEST_DOCUMENTS,
        tells: bool = True,
    ) -> None:
        self._client, self._prepare, self._given = client, prepare, given
        self._most, self._tells = most, tells
        self._changed = threading.Condition()
        self._preparing = threading.Lock()
        self._prepared_until = 0.0
        self._most_bytes = REQUEST_BYTES
        self._waiting: deque[Document] = deque()
        self._owed: dict[int, int] = {}  # batch → documents of it that are not settled
        self._written: Counter[int] = Counter()
        self._refusals: dict[int, list[Refusal]] = {}
        self._stored: list[Stored] = []
        self._troubled: set[int] = set()  # the senders that wait for long
        self._told: set[str] = set()
        self._closed = False
        self._senders = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(SENDERS)]
        for sender in self._senders:
            sender.start()

    def write(self, batch: int, documents: list[Document], refusals: list[Refusal]) -> None:
        """Takes a batch in; the refusals are those that were found before it came here."""
        with self._changed:
            if documents:
                self._owed[batch], self._refusals[batch] = len(documents), refusals
                self._waiting.extend(documents)
            else:
                self._stored.append(Stored(batch, 0, refusals))
            self._changed.notify_all()

    def stored(self, seconds: float) -> list[Stored]:
        """The batches of which every document is settled by now, each once; waits for at most so many seconds until there is one."""
        with self._changed:
            if seconds and not self._stored:
                self._changed.wait_for(lambda: self._stored, seconds)
            stored, self._stored = self._stored, []
        return stored

    def close(self) -> None:
        """Leaves; what is not settled by then is not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + LEAVING_S
        for sender in self._senders:
            sender.join(max(0.0, until - time.monotonic()))
        self._client.close()

    # A sender.

    def _work(self, number: int) -> None:
        while documents := self._next():
            self._store(number, documents)

    def _next(self) -> list[Document]:
        """What is there, as much as a request may hold; waits for it. Empty when it is to leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            documents: list[Document] = []
            size = 0
            while self._waiting and not self._closed and len(documents) < self._most and size < self._most_bytes:
                documents.append(self._waiting.popleft())
                size += len(documents[-1].source)
        return documents

    def _store(self, number: int, documents: list[Document]) -> None:
        """Sends documents until each is settled, or it is to leave."""
        parts = [documents]
        failing_since = 0.0
        pause = FIRST_PAUSE
        while parts and not self._closed:
            sent, began = parts.pop(), time.monotonic()
            left, trouble = self._send(sent)
            if trouble is None:
                parts += left
                failing_since, pause = 0.0, FIRST_PAUSE
                continue
            parts += left
            if sum(map(len, left)) < len(sent):
                pause = FIRST_PAUSE
            self._prepared_until = 0.0  # It may come back empty, without our template.
            failing_since = failing_since or began
            if trouble.at_once or time.monotonic() - failing_since > PATIENCE_S:
                self._waits(number, trouble.reason)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, LAST_PAUSE)
        self._goes_on(number)

    def _send(self, documents: list[Document]) -> tuple[list[list[Document]], Trouble | None]:
        """One request. Gives what is to be sent, in requests of its own, and why it has to wait, unless it has not."""
        try:
            self._prepare_once()
        except Exception as error:  # As below.
            return [documents], _trouble(error)
        try:
            body: Any = [line for each in documents for line in (each.action, each.source)]
            answer = self._client.bulk(operations=body, filter_path=_ANSWER)
        except Exception as error:  # Whatever it is, a sender that ends would leave its documents for ever.
            if isinstance(error, ApiError) and (error.status_code == 413 or _is_about_a_document(error)):
                return self._parted(documents, error), None
            return [documents], _trouble(error)
        return self._settle(documents, answer.body)

    def _prepare_once(self) -> None:
        with self._preparing:
            if time.monotonic() > self._prepared_until:
                self._prepare()
                self._prepared_until = time.monotonic() + PREPARED_S

    def _parted(self, documents: list[Document], error: ApiError) -> list[list[Document]]:
        """A request that is refused as a whole, as one that is too long: by halves, down to the document that is to blame."""
        if len(documents) == 1:
            self._done(documents, [reason_of(error)], 1)
            return []
        half = len(documents) // 2
        if error.status_code == 413:
            self._most_bytes = max(1, min(self._most_bytes, sum(len(each.source) for each in documents)) // 2)
        return [documents[half:], documents[:half]]

    def _settle(self, documents: list[Document], answer: Any) -> tuple[list[list[Document]], Trouble | None]:
        """Takes note of what is stored and what is refused; gives what is to be sent again."""
        try:
            verdicts = [_verdict(next(iter(item.values()))) for item in answer["items"]]
        except Exception:  # Something else than Elasticsearch answers.
            verdicts = []
        if len(verdicts) != len(documents):
            return [documents], Trouble("it does not answer for each document")
        settled: list[Document] = []
        reasons: list[str] = []  # of those that are settled; "" where it is stored
        left: list[Document] = []
        why = ""
        for document, (verdict, reason) in zip(documents, verdicts, strict=True):
            if verdict == "again":
                left.append(document)
                why = reason
            else:
                settled.append(document)
                reasons.append(reason)
        self._done(settled, reasons, len(documents))
        return ([left], Trouble(why)) if left else ([], None)

    def _done(self, documents: list[Document], reasons: list[str], of: int) -> None:
        """These, of so many in the request, are settled: stored, or refused with a reason."""
        refused = Counter((each.target, reason) for each, reason in zip(documents, reasons, strict=True) if reason and self._tells)
        for (target, reason), count in refused.items():
            log.warning(f"{count} of {of} refused by {target}: {reason}")
        with self._changed:
            for document, reason in zip(documents, reasons, strict=True):
                batch = document.batch
                self._owed[batch] -= 1
                if reason:
                    self._refusals[batch].append((self._given(document.source), reason))
                else:
                    self._written[batch] += 1
                if not self._owed[batch]:
                    del self._owed[batch]
                    self._stored.append(Stored(batch, self._written.pop(batch, 0), self._refusals.pop(batch)))
            self._changed.notify_all()

    # What it says.

    def _waits(self, number: int, reason: str) -> None:
        waits.begin("Elasticsearch", reason)
        with self._changed:
            self._troubled.add(number)
            known_as = re.sub(r"\d+", "", reason)  # Some tell how much memory is taken.
            if known_as in self._told:
                return
            self._told.add(known_as)
        log.warning("waits for Elasticsearch", reason=reason)

    def _goes_on(self, number: int) -> None:
        with self._changed:
            self._troubled.discard(number)
            if self._troubled or not self._told or self._closed:
                return
            self._told.clear()
            waits.end("Elasticsearch")
        log.info("goes on with Elasticsearch")


def _verdict(result: dict[str, Any]) -> tuple[str, str]:
    """What became of a document ("stored", "refused" or "again"), and why if it is not stored."""
    status, error = result.get("status", 500), result.get("error")
    if status == 409:  # A repetition came first.
        return "stored", ""
    if error is None and status < 300:
        return ("refused", "the failure store took it") if result.get("failure_store") in ("used", "failed") else ("stored", "")
    if not isinstance(error, dict):
        return "again", f"it answers with status {status}"
    return "refused" if status in (400, 413) and _is_the_documents(error) else "again", refusal_of(error)


def _is_the_documents(error: dict[str, Any]) -> bool:
    return error.get("type") not in _NOT_THE_DOCUMENT and not str(error.get("reason")).startswith(_NOT_THE_DOCUMENT_EITHER)


def _is_about_a_document(error: ApiError) -> bool:
    """Whether a whole request is refused by Elasticsearch, and not by what may stand in front of it, for what a document holds."""
    cause = error.body.get("error") if isinstance(error.body, dict) else None
    return error.status_code == 400 and isinstance(cause, dict) and _is_the_documents(cause)


def _trouble(error: Exception) -> Trouble:
    return Trouble(reason_of(error), is_refusal(error))
