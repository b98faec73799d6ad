"""The setting that names the authorities by which a server is checked."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def _or_none(path: Any) -> Any:
    return path or None


def _usable(path: Path | None) -> Path | None:
    if path is not None:
        try:
            ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            raise ValueError("is no certificate: give it as PEM") from None
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


#: A file of certificates (PEM); None or empty: those of the system.
CaFile = Annotated[Path | None, BeforeValidator(_or_none), AfterValidator(_usable)]
