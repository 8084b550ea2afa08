"""Downloads a listing in its own process, to measure its memory; run by test_fetch_hostile.py.

Arguments: listing, output folder, seconds per attempt. Names that end in .test resolve as a hostile DNS would resolve
them, and 127.0.0.1 counts as public.
"""

from __future__ import annotations

import json
import resource
import socket
import sys

from dataprep.download import address_guard
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard

NAMES = {
    "internal.test": [["127.0.0.2"]],
    "metadata.test": [["169.254.169.254"]],
    "six.test": [["::1", "fd00::1", "::ffff:127.0.0.2"]],
    "mixed.test": [["127.0.0.2", "10.0.0.1", "127.0.0.1"]],
    "rebind.test": [["127.0.0.1"], ["127.0.0.2"]],  # each lookup gets the next answer; the last one repeats
}
lookups: dict[str, int] = {}
is_public = address_guard.is_public


def resolve(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
    if not host.endswith(".test") or host == "nowhere.test":
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    answers = NAMES.get(host, [["127.0.0.1"]])
    addresses = answers[min(lookups.get(host, 0), len(answers) - 1)]
    lookups[host] = lookups.get(host, 0) + 1
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def measure_peak() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    socket.getaddrinfo = resolve  # type: ignore[assignment]
    address_guard.is_public = lambda address: address == "127.0.0.1" or is_public(address)  # type: ignore[assignment]
    fetch = FetchConfig(
        timeout=float(sys.argv[3]),
        retries=1,
        backoff=0.01,
        host_delay=0.0,
        host_concurrency=16,
        max_bytes=4 << 20,
        max_retry_after=0.5,
    )
    config = DownloadConfig(fetch=fetch, image_size=48, max_pixels=4_000_000, encode_format="png", encode_quality=1)
    before = measure_peak()
    counters = download_shard(sys.argv[1], 0, sys.argv[2], config)
    print(json.dumps({"counters": counters, "grown": measure_peak() - before}))


if __name__ == "__main__":
    main()
