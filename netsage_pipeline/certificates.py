"""Settings that name files for TLS: the authorities by which a server is checked, and the certificate that we show one."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from netsage_pipeline.config import or_none


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
CaFile = Annotated[Path | None, BeforeValidator(or_none), AfterValidator(_usable)]


def usable_pair(certificate: Path, key: Path | None) -> None:
    """Checks a certificate of ours and its key, which may be in the same file. ValueError."""
    files = f"{certificate} and {key}" if key else f"{certificate}"
    try:
        ssl.create_default_context().load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{files}: no certificate and its key: give both as PEM, the key without a passphrase") from None
    except OSError as error:
        raise ValueError(f"{files}: cannot be read: {error.strerror}") from None
