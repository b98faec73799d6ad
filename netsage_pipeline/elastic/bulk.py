"""Documents into Elasticsearch, by threads that send what is there in bulk, until each is stored or refused for what it holds.

A document has an id of its own content, so any repetition writes the same document to the same place: what an answer does not say is
sent again, for ever. Only what the server refuses because of the document itself is given back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from elasticsearch import ApiError, Elasticsearch

from netsage_pipeline.elastic.cluster import is_refusal, reason_of, refusal_of
from netsage_pipeline.flow import Flow, Refusal, Stored
from netsage_pipeline.outputs.senders import Answer, Senders, Trouble

#: Documents in a request at most.
REQUEST_DOCUMENTS = 1_000

#: Seconds after which it is prepared again though nothing failed: in a quiet time the server may have been replaced by an empty one.
PREPARED_S = 10.0

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


class Document(NamedTuple):
    """A document on its way."""

    batch: int
    target: str  #: its index
    action: bytes  #: the line of a bulk request that names index and id
    source: bytes  #: the line behind it

    @property
    def size(self) -> int:
        return len(self.source)


class Bulk:
    """Batches of documents.

    prepare   called before the first request, again after every failure, until it succeeds, and every PREPARED_S;
              raises what the client raises
    given     makes the flow again of a document's source, for a refusal
    most      documents in a request
    tells     whether refused documents are worth a line
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
        self._preparing = threading.Lock()
        self._prepared_until = 0.0
        self._senders = Senders("Elasticsearch", self._send, most, (lambda document: document.target) if tells else None)

    def write(self, batch: int, documents: list[Document], refusals: list[Refusal]) -> None:
        """Takes a batch in; the refusals are those that were found before it came here."""
        self._senders.write(batch, documents, refusals)

    def stored(self, seconds: float) -> list[Stored]:
        """The batches of which every document is settled by now, each once; waits for at most so many seconds until there is one."""
        return self._senders.stored(seconds)

    def close(self) -> None:
        """Leaves; what is not settled by then is not."""
        self._senders.close()
        self._client.close()

    def _send(self, documents: list[Document]) -> Answer[Document]:
        """One request."""
        answer = self._answer(documents)
        if answer.trouble is not None:
            self._prepared_until = 0.0  # It may come back empty, without our template.
        return answer

    def _answer(self, documents: list[Document]) -> Answer[Document]:
        try:
            self._prepare_if_due()
        except Exception as error:  # As below.
            return Answer([], [], [documents], _trouble(error))
        try:
            body: Any = [line for each in documents for line in (each.action, each.source)]
            answer = self._client.bulk(operations=body, filter_path=_ANSWER)
        except Exception as error:  # Whatever it is, a sender that ends would leave its documents for ever.
            if isinstance(error, ApiError) and (error.status_code == 413 or _is_about_a_document(error)):
                return self._parted(documents, error)
            return Answer([], [], [documents], _trouble(error))
        return self._judged(documents, answer.body)

    def _prepare_if_due(self) -> None:
        with self._preparing:
            if time.monotonic() > self._prepared_until:
                self._prepare()
                self._prepared_until = time.monotonic() + PREPARED_S

    def _parted(self, documents: list[Document], error: ApiError) -> Answer[Document]:
        """A request that is refused as a whole, as one that is too long: by halves, down to the document that is to blame."""
        if len(documents) == 1:
            return Answer([], [self._refused(documents[0], reason_of(error))], [])
        return Answer([], [], self._senders.halves(documents, too_long=error.status_code == 413))

    def _judged(self, documents: list[Document], answer: Any) -> Answer[Document]:
        """What is stored, what is refused, and what is to be sent again."""
        try:
            verdicts = [_verdict(next(iter(item.values()))) for item in answer["items"]]
        except Exception:  # Something else than Elasticsearch answers.
            verdicts = []
        if len(verdicts) != len(documents):
            return Answer([], [], [documents], Trouble("it does not answer for each document"))
        stored: list[Document] = []
        refused: list[tuple[Document, Flow, str]] = []
        left: list[Document] = []
        why = ""
        for document, (verdict, reason) in zip(documents, verdicts, strict=True):
            if verdict == "again":
                left.append(document)
                why = reason
            elif verdict == "refused":
                refused.append(self._refused(document, reason))
            else:
                stored.append(document)
        return Answer(stored, refused, [left] if left else [], Trouble(why) if left else None)

    def _refused(self, document: Document, reason: str) -> tuple[Document, Flow, str]:
        return document, self._given(document.source), reason


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
