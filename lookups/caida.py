"""CAIDA's list of organizations: CSV rows `asn,organization`."""

from __future__ import annotations

import csv
from pathlib import Path


def open_table(path: Path) -> dict[int, str]:
    """ASN → organization, as it stands in the file; the last of several rows counts. ValueError names each bad row."""
    organizations: dict[int, str] = {}
    errors = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:
            for row in rows:
                if not row:
                    continue
                try:
                    organizations[int(row[0])] = row[1]
                except (ValueError, IndexError):
                    if rows.line_num > 1:  # The first line may be a heading.
                        errors.append(f"line {rows.line_num}: not 'asn,organization': the first field must be a whole number")
        except csv.Error as error:
            errors.append(f"line {rows.line_num}: not CSV: {error}")
        except UnicodeDecodeError:
            errors.append(f"after line {rows.line_num}: not UTF-8: save it as UTF-8")
    if errors:
        raise ValueError("\n".join(errors[:20]))
    return organizations
