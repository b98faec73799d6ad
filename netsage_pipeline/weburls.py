"""What is wrong with an http or https URL that an operator wrote, or with the way to its server, in words that hold nothing of it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def wrong_with(url: str) -> str:
    """Why it cannot be used; "" if it can."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "does not begin with http:// or https://"
        if "@" in parts.netloc:
            return "holds a user or a password"
        if not parts.hostname or parts.port == 0:
            return "names no host or port that can be used"
    except ValueError:
        return "is no URL"
    if re.search(r"[^\x21-\x7e]", url):
        return "holds a blank or another character that is to be written as %20"
    return "has a # in it" if "#" in url else ""


def untrusted(error: str) -> str:
    """Why the server's certificate is not to be trusted, of what urllib3 says; "" if the reason is another one."""
    found = re.search(r"verify failed: (.*?) \(_ssl", error)
    return found[1] if found else ""


def unconnected(error: str) -> str:
    """Why there is no connection, in the system's words, of what urllib3 says; "" if it does not say."""
    found = re.search(r"\[Errno -?\d+\] ([^\])'\"]+)", error)
    return found[1] if found else ""
