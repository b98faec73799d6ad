"""What is on its way through a chain without a ledger, and when a message is no longer owed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from netsage_pipeline.config import SettingsError
from netsage_pipeline.flow import Finished
from netsage_pipeline.statedir import StateError
from netsage_pipeline.worker.ledger import Commit, Ledger
from netsage_pipeline.worker.transit import Transit

ROW: Finished = (b"{}", 0, 0.0, 0.0, 0, 0, "", "")


def commit(transit: Transit, rows: int = 0, letters: tuple[bytes, ...] = (), done: tuple[int, ...] = ()) -> list[int]:
    """Writes one; the numbers of what is owed then."""
    transit.write(transit.encode(Commit([], None, [ROW] * rows, [*letters], [*done], Counter(), 1.0, 1.0)))
    return list(transit.state.outbox)


def test_what_became_a_dead_letter_is_owed_until_that_is_stored(tmp_path: Path) -> None:
    transit = Transit(tmp_path)
    assert commit(transit, 3) == [0, 1, 2]
    assert commit(transit, 0, (b"letter",), (0, 1)) == [0, 1, 2, 3]
    assert commit(transit, 1, (), (2,)) == [0, 1, 3, 4]
    assert commit(transit, 0, (b"another",), (4,)) == [0, 1, 3, 4, 5]
    assert commit(transit, 0, (), (3,)) == [4, 5]
    assert commit(transit, 0, (), (5,)) == []
    assert transit.state.owed_bytes == 0
    transit.close()


def test_refusals_without_end_keep_nothing_for_longer(tmp_path: Path) -> None:
    transit = Transit(tmp_path)
    commit(transit, 1)
    for _ in range(100):
        owed = commit(transit, 1, (b"letter",), tuple(transit.state.outbox))
        assert len(owed) <= 5
    transit.close()


def test_its_directory_is_its_own(tmp_path: Path) -> None:
    transit = Transit(tmp_path / "sink")
    with pytest.raises(StateError):
        Transit(tmp_path / "sink")
    transit.close()
    Ledger(tmp_path / "worker").close()
    with pytest.raises(SettingsError, match="is the ledger of a chain that holds flows"):
        Transit(tmp_path / "worker")
    Ledger(tmp_path / "worker").close()


def test_a_letter_has_the_id_in_its_envelope(tmp_path: Path) -> None:
    transit = Transit(tmp_path)
    assert transit.letter_id(7, b'{"id":"0123456789abcdef0123456789abcdef","stage":"x"}') == "0123456789abcdef0123456789abcdef"
    transit.close()
