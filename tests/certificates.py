"""Certificates for servers that tests start, made anew by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificates(directory: Path, *, names: str = "DNS:localhost,IP:127.0.0.1") -> Path:
    """ca.pem and other.pem, two authorities; server.pem and client.pem with their keys, which the first one signed for these names."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other"):
        openssl("req", "-x509", *new_key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}")
    (directory / "names").write_text(f"subjectAltName={names}\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    for owner in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{owner}.key", "-out", f"{owner}.csr", "-subj", f"/CN={owner}")
        openssl("x509", "-req", "-in", f"{owner}.csr", "-out", f"{owner}.pem", *signed)
    return directory
