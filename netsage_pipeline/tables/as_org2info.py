"""CAIDA's own file of organizations, YYYYMMDD.as-org2info.txt, made to the CSV that stage 53 and the reference read.

# format:org_id|changed|org_name|country|source
UMN-ARIN|20210401|University of Minnesota|US|ARIN
# format:aut|changed|aut_name|org_id|opaque_id|source
217|20210401|UMN-SYSTEM|UMN-ARIN|…|ARIN
"""

from __future__ import annotations

import csv
from pathlib import Path

_HEAD = "# format:"


def convert(path: Path, to: Path) -> list[str]:
    """Writes rows `asn,organization`; what of the file was left out, a line each, at most 20. ValueError if it is no such file; OSError.

    As the reference's script does it, an organization without a name is Unknown, and a backslash becomes a blank.
    """
    names: dict[str, str] = {}
    organizations: dict[int, str] = {}
    errors: list[str] = []
    columns: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.startswith(_HEAD):
                columns = line.removeprefix(_HEAD).strip().split("|")
            elif not line.startswith("#") and line.strip():
                row = dict(zip(columns, line.rstrip("\n").split("|"), strict=False))
                if {"org_id", "org_name"} <= row.keys():
                    names[row["org_id"]] = row["org_name"].replace("\\", " ")
                elif "org_id" in row and row.get("aut", "").isdecimal():
                    organizations[int(row["aut"])] = row["org_id"]
                elif len(errors) < 20:
                    errors.append(f"line {number}: is no row of CAIDA's as-org2info: left out")
    if not organizations:
        raise ValueError("is no file of CAIDA's (as-org2info.txt), and no CSV 'asn,organization' either")
    with to.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((asn, names.get(of) or "Unknown") for asn, of in sorted(organizations.items()))
    return errors
