"""One shard from its inputs to its marker, in whatever process or thread."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from dataprep.io import storage
from pipeline.runtime.shard_worker import ShardTask, ShardWorker
from pipeline.store.artifact import Shard, describe_file
from pipeline.store.markers import Marker, write_marker


def finish_shard(worker: ShardWorker, shard: Shard, folder: str, subfolder: str, fingerprint: str) -> Marker:
    """Runs ``worker`` on ``shard``, publishes its files into ``folder``, commits its marker and returns it.

    Args:
        folder: where the files and the marker go.
        subfolder: of the stage's folder, where ``folder`` is one.
        fingerprint: of the marker.
    """
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch, ExitStack() as stack:
        files = {name: stack.enter_context(storage.local_copy(path)) for name, path in shard.files.items()}
        counters = worker(ShardTask(shard.id, files, Path(scratch)))
        outputs = [describe_file(scratch, name) for name in storage.list_files(scratch)]
        for output in outputs:
            storage.publish(Path(scratch) / output.path, storage.join(folder, output.path))
    marker = Marker(shard.id, fingerprint, shard.sha256, outputs, counters, subfolder)
    write_marker(folder, marker)
    return marker
