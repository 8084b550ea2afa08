"""Downloads a listing in a process of its own, so that its memory can be told; run by test_hostile.py.

Arguments: the listing, the folder for the output. Names that end in .test resolve here, as a hostile DNS would have it,
and 127.0.0.1 counts as public.
"""

from __future__ import annotations

import json
import resource
import socket
import sys

from dataprep import guard
from dataprep.download import DownloadConfig, download_shard
from dataprep.fetch import FetchConfig

NAMES = {
    "internal.test": [["127.0.0.2"]],
    "metadata.test": [["169.254.169.254"]],
    "six.test": [["::1", "fd00::1", "::ffff:127.0.0.2"]],
    "mixed.test": [["127.0.0.2", "10.0.0.1", "127.0.0.1"]],
    "rebind.test": [["127.0.0.1"], ["127.0.0.2"]],  # each lookup gets the next answer, the last one stays
}
lookups: dict[str, int] = {}
is_public = guard.is_public


def resolve(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
    if not host.endswith(".test") or host == "nowhere.test":
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    answers = NAMES.get(host, [["127.0.0.1"]])
    addresses = answers[min(lookups.get(host, 0), len(answers) - 1)]
    lookups[host] = lookups.get(host, 0) + 1
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    socket.getaddrinfo = resolve  # type: ignore[assignment]
    guard.is_public = lambda address: address == "127.0.0.1" or is_public(address)
    fetch = FetchConfig(timeout=2.0, retries=1, backoff=0.01, host_delay=0.0, host_concurrency=16, max_bytes=4 << 20)
    config = DownloadConfig(fetch=fetch, image_size=48, max_pixels=4_000_000, encode_format="png", encode_quality=1)
    before = peak()
    counters = download_shard(sys.argv[1], 0, sys.argv[2], config)
    print(json.dumps({"counters": counters, "grown": peak() - before}))


if __name__ == "__main__":
    main()
