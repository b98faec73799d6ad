"""The counts that must come out of the chain, gathered while the flows are planted."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from truth import Facts, scope


@dataclass
class Expected:
    facts: Facts
    read: int = 0
    parts: int = 0
    flows: int = 0
    not_stitched: int = 0
    num_bits: int = 0
    num_packets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dead_lettered: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    disciplines: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    scopes: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def stitches(self, rows: list[dict[str, Any]]) -> None:
        """These rows must come out as one flow."""
        self.parts += len(rows)
        self.flows += 1
        self.written(rows)

    def passes(self, row: dict[str, Any]) -> None:
        """This row must come out by itself, past stitching."""
        self.not_stitched += 1
        self.written([row])

    def written(self, rows: list[dict[str, Any]]) -> None:
        meta = rows[0]["meta"]
        num_bits = sum(row["values"]["num_bits"] for row in rows)
        self.num_bits += num_bits
        self.num_packets += sum(row["values"]["num_packets"] for row in rows)
        src = self.facts.end(meta["src_ip"], meta.get("src_asn"), False)
        dst = self.facts.end(meta.get("dst_ip", ""), meta.get("dst_asn"), True)  # a missing address is in no table
        self.pairs[src.organization, dst.organization] += num_bits
        # A flow counts once for each discipline that is at one of its ends, or at both.
        for discipline in {src.discipline, dst.discipline} - {None}:
            add(self.disciplines[str(discipline)], num_bits)
        add(self.scopes[scope(src, dst)], num_bits)

    def as_json(self, now: int, files: int) -> dict[str, Any]:
        pairs = sorted(((src, dst, bits) for (src, dst), bits in self.pairs.items()), key=lambda pair: (-pair[2], pair[:2]))
        return {
            "now": now,
            "files": files,
            "read": self.read,
            "messages_refused": self.dead_lettered["decode: not JSON"],
            "dropped": dict(sorted(self.dropped.items())),
            "dead_lettered": dict(sorted(self.dead_lettered.items())),
            "stitching": {"parts": self.parts, "flows": self.flows},
            "not_stitched": self.not_stitched,
            "written": self.flows + self.not_stitched,
            "sums": {"num_bits": self.num_bits, "num_packets": self.num_packets},
            "tables": {
                "organization_pairs": [list(pair) for pair in pairs[:10]],
                "disciplines": by_bits(self.disciplines),
                "country_scope": by_bits(self.scopes),
            },
        }


def add(counts: list[int], num_bits: int) -> None:
    counts[0] += 1
    counts[1] += num_bits


def by_bits(table: dict[str, list[int]]) -> list[list[Any]]:
    return sorted(([name, flows, bits] for name, (flows, bits) in table.items()), key=lambda row: (-row[2], row[0]))
