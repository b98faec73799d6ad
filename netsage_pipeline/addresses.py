"""IP addresses as the stages need them: parsed to bytes, looked up in sets of prefixes, masked."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytricia

#: What stands in place of a text that should be an address and is none.
INVALID = "INVALID IP"

_MAPPED = bytes(10) + b"\xff\xff"
#: The longest text of an address: ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255
LONGEST = 45

# The lookbehind keeps a long run without a dot from being searched again from each of its characters.
_LIKE_AN_ADDRESS = re.compile(r"(?<![0-9A-Fa-f:.])[0-9A-Fa-f]*[:.][0-9A-Fa-f:.]+")
# Within a text that may say anything: IPv4 wherever it stands, IPv6 as a word of its own (Foo::Bar is none). A prefix such as 192.0.2.0/24
# names a network and stays; 192.0.2.1/32 is an address.
_SURELY_AN_ADDRESS = re.compile(
    r"((?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d)|(?<![\w:.])[0-9A-Fa-f]*:[0-9A-Fa-f:.]*[0-9A-Fa-f](?!\w))(?!/(?!(?:32|128)\b)\d)"
)
_NO_MERE_WORD = re.compile(r"[\d.:]")
# As much as one address can be: four parts; or eight groups, the last two perhaps as IPv4, and a gap of which one side may be empty.
_FOUR_PARTS = re.compile(r"[0-9A-Fa-f]*(?:\.[0-9A-Fa-f]*){3}")
_EIGHT_GROUPS = re.compile(r"[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,8}(?:\.[0-9A-Fa-f]*){0,3}")


def parse(text: str) -> bytes | None:
    """The address as 4 or 16 bytes; None if the text is no address. Zones, masks, brackets and leading zeros make it none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return None


def unmapped(packed: bytes) -> bytes:
    """The IPv4 address in an IPv4-mapped IPv6 address (::ffff:192.0.2.1); any other address as it is."""
    return packed[12:] if packed[:12] == _MAPPED and len(packed) == 16 else packed


def mask(text: str) -> str | None:
    """The address without its host part; None if the text is no address.

    192.0.2.1 → 192.0.2.x; of IPv6 the last four groups: 2001:db8::1 → 2001:db8:0:0:x:x:x:x. Groups that carry an IPv4 address
    are masked too: in 6to4 (2002::/16) the second and third, in Teredo (2001:0::/32) all after the prefix.
    """
    packed = parse(text)
    if packed is None:
        return None
    if len(packed) == 4:
        return "{}.{}.{}.x".format(*packed)
    groups = [f"{packed[i] << 8 | packed[i + 1]:x}" for i in range(0, 8, 2)]
    if groups[0] == "2002":
        groups[1:3] = "xx"
    elif groups[:2] == ["2001", "0"]:
        groups[2:4] = "xx"
    return ":".join([*groups, "x:x:x:x"])


class Prefixes:
    """A table of prefixes, IPv4 and IPv6: the value of the longest one that holds an address. Mapped IPv4 counts as IPv4."""

    def __init__(self) -> None:
        self._v4 = pytricia.PyTricia(32, socket.AF_INET)
        self._v6 = pytricia.PyTricia(128, socket.AF_INET6)

    def add(self, prefix: str, value: Any = True) -> None:
        """ValueError with a sentence if the text is no prefix. Host bits may be set, as the reference allows."""
        network = network_of(prefix)
        (self._v4 if network.version == 4 else self._v6).insert(str(network), value)

    def get(self, ip: str) -> Any:
        """The value for an address; None if no prefix holds it or it is none."""
        packed = parse(ip)
        if packed is None:
            return None
        packed = unmapped(packed)
        return (self._v4 if len(packed) == 4 else self._v6).get(packed)

    def __len__(self) -> int:
        return len(self._v4) + len(self._v6)


def network_of(prefix: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network that a text names, mapped IPv4 as IPv4. ValueError with a sentence if it is no prefix. Host bits may be set."""
    network = ipaddress.ip_network(prefix, strict=False)
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return ipaddress.ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def is_multicast(ip: str) -> bool:
    """Whether the address lies in 224.0.0.0/4 or ff00::/8."""
    packed = parse(ip)
    if packed is None:
        return False
    packed = unmapped(packed)
    return packed[0] >> 4 == 14 if len(packed) == 4 else packed[0] == 0xFF


def masker(*ends: str) -> Callable[[Any], Any]:
    """A function that masks addresses in any JSON value: texts that are addresses, and these ends, in any notation, within longer texts.

    An end that is no address may hold one: that is masked too, and so is the end as a whole if it may name a host: at least four
    characters, with a digit, dot or colon among them. Words such as Unknown stand anywhere. More than 200 dots, colons and hexadecimal
    digits in a row are not searched but masked as a whole.
    """
    wanted = {packed for end in ends for packed in _addresses_in(end)}
    literal = {end for end in ends if parse(end) is not None or (len(end) >= 4 and _NO_MERE_WORD.search(end))}
    literal |= {_written(packed) for packed in wanted}
    longest_first = [(end, mask(end) or INVALID) for end in sorted(literal, key=len, reverse=True)]
    begins = {begin for packed in wanted for begin in _begins(packed)}

    def within(text: str) -> str:
        if not may_hold_addresses(text) and not any(end in text for end in literal):
            return text
        whole = mask(text)
        if whole is not None:
            return whole
        for end, masked in longest_first:
            text = text.replace(end, masked)
        return _LIKE_AN_ADDRESS.sub(lambda match: _mask_glued(match[0], wanted, begins), text)

    return lambda value: _in_texts(value, within)


def _begins(packed: bytes) -> str:
    """The characters that a text of an address can begin with; IPv4 also as a mapped address."""
    if len(packed) == 4:
        return f"0:{str(packed[0])[0]}"
    first = f"{packed[0] << 8 | packed[1]:x}"
    return f"0{first[0]}{first[0].upper()}{':' if first == '0' else ''}"


def mask_every(value: Any) -> Any:
    """Any JSON value with all addresses in its texts masked; prefixes stay."""

    def within(text: str) -> str:
        return mask(text) or _SURELY_AN_ADDRESS.sub(found, text) if may_hold_addresses(text) else text

    def found(match: re.Match[str]) -> str:
        text = match[0][: LONGEST + 1]
        while text.strip(":."):
            masked = mask(text)
            if masked is not None:
                return masked + match[0][len(text) :]
            text = text[: max(text.rfind("."), text.rfind(":"), 0)]  # A port may follow.
        return match[0]

    return _in_texts(value, within)


def may_hold_addresses(value: Any) -> bool:
    """False if no text in a JSON value holds an address in any notation; most of what tables say, and that costs little."""
    if isinstance(value, str):
        return ("." in value or ":" in value) and _LIKE_AN_ADDRESS.search(value) is not None
    if isinstance(value, dict):
        return any(map(may_hold_addresses, (*value, *value.values())))
    return isinstance(value, list) and any(map(may_hold_addresses, value))


def _in_texts(value: Any, masked: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return _named((_in_texts(name, masked), _in_texts(inner, masked)) for name, inner in value.items())
    if isinstance(value, list):
        return [_in_texts(inner, masked) for inner in value]
    return value


def _named(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object of names and values. Of equal names, as those of one network are once they are masked, later ones are numbered: x (2)."""
    named: dict[str, Any] = {}
    numbers: Counter[str] = Counter()
    for name, value in items:
        unused = name
        while unused in named:  # From where it was last: there may be as many as fit into a message.
            numbers[name] += 1
            unused = f"{name} ({numbers[name] + 1})"
        named[unused] = value
    return named


def _mask_glued(text: str, wanted: set[bytes], begins: set[str]) -> str:
    """Masks wanted addresses in a text of hexadecimal digits, dots and colons, whatever they are glued to."""
    if len(text) > 200:
        return INVALID
    parts = []
    begin = 0
    while begin < len(text):
        address = ""
        if text[begin] in begins:
            address = next((text for text, packed in _addresses_at(text, begin) if packed in wanted), "")
        parts.append((address and mask(_without_zeros(address))) or text[begin])
        begin += len(address) or 1
    return "".join(parts)


def _addresses_in(text: str) -> Iterator[bytes]:
    """The address that a text is, else all that can be read somewhere in it; mapped ones as IPv4."""
    whole = parse(text)
    if whole is not None:
        yield unmapped(whole)
        return
    for match in _LIKE_AN_ADDRESS.finditer(text):
        for begin in range(min(len(match[0]), 200)):
            yield from (packed for _, packed in _addresses_at(match[0], begin))


def _addresses_at(text: str, begin: int) -> Iterator[tuple[str, bytes]]:
    """The addresses that can be read from there, the longest first, each as text and in bytes."""
    parts = _FOUR_PARTS.match(text, begin, begin + LONGEST)
    if parts:
        packed = parse(_without_zeros(parts[0]))
        if packed is not None:
            yield parts[0], packed
        return
    groups = _EIGHT_GROUPS.match(text, begin, begin + LONGEST)
    candidate = groups[0] if groups else ""
    while "::" in candidate or candidate.count(":") > 5:
        packed = parse(candidate)
        if packed is not None:
            yield candidate, unmapped(packed)
        candidate = candidate[: max(candidate.rfind("."), candidate.rfind(":"))]


def _without_zeros(text: str) -> str:
    """192.000.002.001 as 192.0.2.1: no address to us, but some programs write it so."""
    return text if ":" in text else ".".join(part.lstrip("0") or "0" for part in text.split(".")) if text else text


def _written(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
