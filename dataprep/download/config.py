"""Config of the download: how URLs are fetched and images stored."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dataprep.download.allowed_hosts import parse_allowed_host
from dataprep.images.config import StoreConfig
from dataprep.io.config import Config
from dataprep.io.version import package_version


class FetchConfig(Config):
    """How URLs are fetched."""

    timeout: float = Field(default=10.0, gt=0, description="seconds per attempt: DNS, redirects and the whole body")
    retries: int = Field(
        default=2, ge=0, description="further attempts after a timeout, a broken connection, 429 or 5xx"
    )
    backoff: float = Field(
        default=0.5, ge=0, description="seconds before the first retry, doubled for each further one"
    )
    deadline: float = Field(
        default=60.0,
        gt=0,
        description="seconds per URL, all attempts and the pauses between them: no attempt starts that could exceed it",
    )
    max_retry_after: float = Field(
        default=20.0,
        ge=0,
        description="maximum Retry-After that is waited for, seconds; a URL refused for longer is asked again after as "
        "much, and a host that refuses five times in a row is left alone",
    )
    concurrency: int = Field(default=64, ge=1, description="requests in flight per process")
    host_concurrency: int = Field(default=6, ge=1, description="requests in flight per host on the public internet")
    host_delay: float = Field(
        default=0.05, ge=0, description="seconds between requests to one host on the public internet"
    )
    max_crawl_delay: float = Field(
        default=2.0, ge=0, description="maximum Crawl-delay of robots.txt that is respected, seconds"
    )
    max_bytes: int = Field(default=32 << 20, ge=1, description="maximum body; a longer one fails and is not truncated")
    max_redirects: int = Field(default=5, ge=0, description="maximum redirects, each checked like the first URL")
    allow_private_addresses: bool = Field(
        default=False, description="also fetch from loopback, private and link-local addresses"
    )
    allow_hosts: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="names, addresses and networks that may be fetched from though they are not public, each with an "
        "optional port, for lists that mix your own hosts with the web: [images.example, 10.1.0.0/16, 10.2.3.4:8080]",
    )
    user_agent: str = Field(
        default_factory=lambda: f"imagen-ray/{package_version()}",
        min_length=1,
        description="User-Agent header; include a contact",
    )
    obey_robots_txt: bool = Field(default=True, description="do not request URLs that the site's robots.txt disallows")
    obey_robots_tag: bool = Field(
        default=True, description="respect X-Robots-Tag headers with one of disallowed_directives"
    )
    disallowed_directives: tuple[str, ...] = Field(
        default=("noai", "noimageai", "noindex", "noimageindex"),
        strict=False,
        description="X-Robots-Tag directives that opt an image out",
    )
    obey_tdm: bool = Field(
        default=True, description="respect TDM reservations, in the header and in /.well-known/tdmrep.json"
    )

    @field_validator("allow_hosts")
    @classmethod
    def _hosts_are_known(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            parse_allowed_host(host)
        return hosts

    @property
    def product(self) -> str:
        """The name to match in robots.txt and X-Robots-Tag: the user agent up to '/'."""
        return self.user_agent.split("/")[0].split(" ")[0]


HASH_DIGITS = {"sha256": 64, "md5": 32, "phash": 16}  # kind of hash -> hexadecimal digits


class HashListConfig(Config):
    """A list of hashes of images that must not be stored."""

    path: str = Field(
        min_length=1,
        description="text file with a hash per line, in hexadecimal, or a Parquet file; a path or an fsspec URL",
    )
    kind: Literal["sha256", "md5", "phash"] = Field(
        description="of the file as fetched; or phash: the 64-bit perceptual hash of imagehash"
    )
    column: str | None = Field(default=None, description="column with the hashes, of a Parquet file")
    distance: int = Field(default=0, ge=0, le=16, description="phash: bits in which an image may differ from the list")
    reason: Literal["hash_opt_out", "hash_illegal"] = Field(
        default="hash_opt_out", description="the reason that the row of a listed image gets"
    )

    @model_validator(mode="after")
    def _distance_fits(self) -> Self:
        if self.distance and self.kind != "phash":
            raise ValueError(
                f"distance {self.distance} needs kind phash; {self.kind} is compared exactly: leave it out"
            )
        return self


class DownloadConfig(StoreConfig):
    """How images are fetched and stored."""

    hash_lists: tuple[HashListConfig, ...] = Field(
        default=(), strict=False, description="lists of images that are refused before anything of them is stored"
    )
    fetch: FetchConfig = Field(default=FetchConfig(), description="how URLs are fetched")
    retry_failed: int = Field(
        default=0,
        ge=0,
        le=999,
        description="further passes over rows that failed for transient reasons; "
        "raised in a finished run, only those rows are requested again",
    )
