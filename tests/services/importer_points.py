"""An importer in a process of its own that ends itself with SIGKILL at the n-th passage of a named point of its way.

Nothing in the package knows of it: the methods at which the points lie are wrapped.

    python -m tests.services.importer_points POINT NTH REPORT run --conf conf.d/import
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from netsage_pipeline.cli import main
from netsage_pipeline.importer import importing
from netsage_pipeline.importer.imported import Imported
from netsage_pipeline.importer.importing import Importer, Watch
from netsage_pipeline.importer.nffile import copy_part
from netsage_pipeline.rabbitmq import amqp
from netsage_pipeline.reading.nfdump import Reading
from netsage_pipeline.worker.relay import Relay
from tests.services.worker import around

#: Point → the highest number of passages that is worth waiting for.
POINTS = {
    "started": 1,
    "looked through": 2,
    "part noted": 4,
    "file noted": 4,
    "new blocks copied": 1,
    "nfdump began": 4,
    "message made": 40,
    "published": 4,
    "partly confirmed": 40,
    "confirmed": 4,
    "acknowledged": 4,
    "before it is written down": 3,
    "in the transaction": 3,
    "written down": 3,
    "file ended": 4,
}


class Killer:
    def __init__(self, point: str, nth: int, report: str) -> None:
        self._point, self._left = point, nth
        self._report = os.open(report, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def passes(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left <= 0:
                os.write(self._report, f"{point}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)


def place(killer: Killer) -> None:
    """Puts the points where they lie."""
    passes = killer.passes

    def if_any(point: str) -> Any:
        return lambda result, *_, **__: passes(point) if result else None

    def made(_: None, relay: Relay, *__: Any) -> None:
        around(relay._sink, "pass_on", after=lambda *_: passes("published"))
        around(relay._sink, "stored", after=if_any("confirmed"))

    around(Importer, "__init__", after=lambda *_: passes("started"))
    around(Watch, "is_wrong", after=lambda *_: passes("looked through"))
    around(Imported, "begin", after=lambda *_: passes("part noted"))
    around(Imported, "found", after=lambda *_: passes("file noted"))
    around(Reading, "begins", after=if_any("nfdump began"))
    around(Importer, "_delivery", after=lambda *_: passes("message made"))
    around(Relay, "__init__", after=made)
    around(amqp.Publisher, "_on_confirm", after=lambda *_: passes("partly confirmed"))
    around(Importer, "acknowledge", after=lambda *_: passes("acknowledged"))
    around(Importer, "_end", after=lambda _, __, job: None if job.on_the_way else passes("file ended"))
    _place_in_writing(killer)

    def copied(*arguments: Any) -> Any:
        digest = yield from copy_part(*arguments)
        passes("new blocks copied")
        return digest

    vars(importing)["copy_part"] = copied


def _place_in_writing(killer: Killer) -> None:
    """Around a transaction that says what is stored, and in it."""
    writing = Imported.writing
    sends = False

    @contextlib.contextmanager
    def wrapped(imported: Imported) -> Iterator[Any]:
        with writing(imported) as database:
            yield database
            if sends:
                killer.passes("in the transaction")

    def before(*_: Any) -> None:
        nonlocal sends
        sends = True
        killer.passes("before it is written down")

    def after(*_: Any) -> None:
        nonlocal sends
        sends = False
        killer.passes("written down")

    setattr(Imported, "writing", wrapped)  # noqa: B010
    around(Imported, "sent", before=before, after=after)


if __name__ == "__main__":
    point, nth, report, *command = sys.argv[1:]
    importing.WRITE_S = 0.0  # So that it is written down in the middle of a file as well.
    place(Killer(point, int(nth), report))
    main(command)
