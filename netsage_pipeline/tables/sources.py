"""Where lookup tables are fetched from: the settings of `netsage-pipeline lookups update`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.config import Settings
from netsage_pipeline.tables.fetch import wrong_with
from netsage_pipeline.tables.members import list_name

#: Which table each source fills, and the kind (in lookups/) that opens it; members/ has a source for each list.
TABLES = {
    "city": ("GeoLite2-City.mmdb", "city"),
    "asn": ("GeoLite2-ASN.mmdb", "asn"),
    "caida": ("CAIDA-org-lookup.csv", "caida"),
    "scireg": ("scireg.mmdb", "registry"),
    "communities": ("communities.mmdb", "registry"),
}

#: What gives a source an address.
HOW = {name: f"NETSAGE_{name.upper()}_URL" for name in TABLES} | {
    "members": "NETSAGE_MEMBERS_URLS",
    "city": "NETSAGE_MAXMIND_ACCOUNT and NETSAGE_MAXMIND_LICENSE_KEY, or NETSAGE_CITY_URL",
    "asn": "NETSAGE_MAXMIND_ACCOUNT and NETSAGE_MAXMIND_LICENSE_KEY, or NETSAGE_ASN_URL",
}


class Sources(Settings):
    maxmind_url: str = Field("https://download.maxmind.com/geoip/databases", description="MaxMind's downloads of GeoLite2 City and ASN")
    maxmind_account: str = Field("", description="Account id at MaxMind; empty: nothing is fetched there")
    maxmind_license_key: SecretStr | None = Field(None, validate_default=True, description="Its licence key")
    city_url: SecretStr = Field(SecretStr(""), description="City database from elsewhere: mmdb, or tar.gz with one; no key is given there")
    asn_url: SecretStr = Field(SecretStr(""), description="ASN database from elsewhere, in the same forms")
    caida_url: SecretStr = Field(SecretStr(""), description="CAIDA's organizations: their as-org2info.txt, or CSV 'asn,organization'")
    scireg_url: SecretStr = Field(SecretStr(""), description="Science registry: mmdb, or its JSON export, of which the mmdb is made")
    communities_url: SecretStr = Field(SecretStr(""), description="Communities, in the same forms")
    members_urls: SecretStr = Field(
        SecretStr(""), description="Member lists, separated by commas: NAME.toml, or the reference's NAME-members-list.rb"
    )
    limit_bytes: int = Field(1_000_000_000, ge=1, description="What is longer, as it is sent or when it is unpacked, is refused")

    @field_validator("maxmind_license_key")
    @classmethod
    def _has_account(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "maxmind_account" in info.data and bool(info.data["maxmind_account"]) != bool(key and key.get_secret_value()):
            raise ValueError("account and licence key belong together: set both, or none")
        return key

    @field_validator("maxmind_account")
    @classmethod
    def _is_number(cls, account: str) -> str:
        if not re.fullmatch(r"\d*", account):
            raise ValueError("an account id is a number")
        return account

    @field_validator("maxmind_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if wrong := wrong_with(url):
            raise ValueError(wrong)
        return url.rstrip("/")

    @field_validator("city_url", "asn_url", "caida_url", "scireg_url", "communities_url")
    @classmethod
    def _is_url_or_empty(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and (wrong := wrong_with(url.get_secret_value())):
            raise ValueError(f"it {wrong}: write https://host/path")
        return url

    @field_validator("members_urls")
    @classmethod
    def _are_lists(cls, urls: SecretStr) -> SecretStr:
        each = _separated(urls)
        for number, url in enumerate(each, 1):
            wrong = wrong_with(url)
            if not wrong and not (_file(url).endswith((".toml", ".rb")) and _list(url)):
                wrong = "does not end in a name with .toml or .rb"
            if wrong:
                raise ValueError(f"address {number} of {len(each)} {wrong}: write https://host/NAME.toml")
        if len({_list(url) for url in each}) < len(each):
            raise ValueError("two of the lists have the same name: rename one")
        return urls


class Source(NamedTuple):
    """A table and where it comes from."""

    name: str
    table: Path  #: below the directory of the tables
    kind: str  #: of the table: the file in lookups/ that opens it
    url: str  #: "" if none is set
    checksum_url: str  #: its sha256, if there is one
    user: str = ""
    password: str = ""


def sources(settings: Sources) -> list[Source]:
    """All of them, also those without an address."""
    found = []
    for name, (table, kind) in TABLES.items():
        url = getattr(settings, f"{name}_url").get_secret_value()
        if not url and name in ("city", "asn") and settings.maxmind_account and settings.maxmind_license_key:
            archive = f"{settings.maxmind_url}/{Path(table).stem}/download?suffix=tar.gz"
            key = settings.maxmind_license_key.get_secret_value()
            found.append(Source(name, Path(table), kind, archive, f"{archive}.sha256", settings.maxmind_account, key))
        else:
            found.append(Source(name, Path(table), kind, url, _beside(url)))
    lists = _separated(settings.members_urls)
    for url in lists:
        name = _list(url)
        found.append(Source(f"members/{name}", Path("members", f"{name}.toml"), "members", url, _beside(url)))
    return found if lists else [*found, Source("members", Path("members"), "members", "", "")]


def _beside(url: str) -> str:
    """Where a checksum usually is."""
    return "" if urlsplit(url).query else f"{url}.sha256"


def _separated(urls: SecretStr) -> list[str]:
    return [url.strip() for url in urls.get_secret_value().split(",") if url.strip()]


def _file(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _list(url: str) -> str:
    return re.sub(r"[^\w.-]", "_", list_name(_file(url)))
