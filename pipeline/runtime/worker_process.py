"""A process on the cluster that runs shard workers and training ranks, one after another.

Starting a process and importing torch and DeepSpeed takes longer than many a stage, so a process outlives the stage
that started it (`pipeline.runtime.warm_processes`). Each stage gets a worker object of its own.

Ray pickles this module by value, and it imports nothing of ours at its top: the constructor corrects sys.path first.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from pipeline.runtime.shard_worker import ShardWorker
    from pipeline.store.artifact import Shard
    from pipeline.store.markers import Marker


class WorkerProcess:
    """A Ray actor. Runs one call at a time, except for `request_shutdown`.

    Args:
        environment: environment variables, set before any library is imported.
        hidden_paths: entries to remove from sys.path, see `pipeline.runtime.own_code.list_shadowing_paths`.
        defaults: environment variables that are set if the node does not.
    """

    def __init__(
        self, environment: Mapping[str, str], hidden_paths: Sequence[str], defaults: Mapping[str, str] | None = None
    ) -> None:
        # Ray may re-extract the job's working folder under this process. All paths are absolute from here on.
        os.chdir(tempfile.gettempdir())
        os.environ.update(environment)
        for name, value in (defaults or {}).items():
            os.environ.setdefault(name, value)
        if "PYTHONWARNINGS" not in os.environ:
            warnings.simplefilter("ignore")
        hidden = set(hidden_paths)
        sys.path[:] = [path for path in sys.path if path not in hidden]
        self.worker: ShardWorker | None = None
        self.key = ""  # of the worker

    def locate(self) -> tuple[str, str, list[str]]:
        """Returns Ray's id of this node, its IP address, and the ids of the GPUs assigned to this process."""
        gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), gpus

    def find_port(self) -> int:
        """Returns a TCP port that is free on this node."""
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    @ray.method(concurrency_group="control")
    def request_shutdown(self) -> None:
        """Makes the running rank save a checkpoint and stop."""
        from dataprep.io.signals import SHUTDOWN

        SHUTDOWN.set()

    def clear(self) -> None:
        """Frees the worker and its memory."""
        from dataprep.io.signals import SHUTDOWN

        SHUTDOWN.clear()  # a request may have come after the rank had ended
        self.worker, self.key = None, ""
        gc.collect()
        gc.freeze()  # what is left are modules: the next collection need not look at them again
        with suppress(OSError):  # not on Linux
            Path("/proc/self/clear_refs").write_text("5")  # so that the peak memory is that of the next worker
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def run_shard(
        self, key: str, made_from: Sequence[Any], shard: Shard, folder: str, subfolder: str, fingerprint: str
    ) -> Marker:
        """Returns the marker of ``shard``, which `pipeline.runtime.shard_commit.finish_shard` commits.

        Args:
            key: names the worker. It is created with its first shard, so that the driver receives its exception.
            made_from: a reference to the worker's class and arguments, in a list, so that Ray fetches it only on need.
            shard, folder, subfolder, fingerprint: of that function.
        """
        from pipeline.runtime.shard_commit import finish_shard

        if self.worker is None or self.key != key:
            self.clear()
            worker, arguments = ray.get(made_from[0])
            self.worker, self.key = worker(**arguments), key
        return finish_shard(self.worker, shard, folder, subfolder, fingerprint)

    def run_rank(
        self,
        made_from: Sequence[Any],
        environment: Mapping[str, str],
        threads: int,
        hang_seconds: float,
    ) -> dict[str, Any] | None:
        """Runs one rank of a training group; returns rank 0's result.

        Args:
            made_from: a reference to the function and its arguments, in a list, so that it is fetched here.
            environment: RANK, WORLD_SIZE and the like, as torch reads them.
            threads: of torch, on a CPU.
            hang_seconds: timeout of collectives.
        """
        self.clear()
        os.environ.update(environment)
        import torch

        from dataprep.io.device_settings import prepare_environment
        from train.engine import init_process_group, leave_process_group

        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        function: Callable[..., dict[str, Any]]
        function, arguments = ray.get(made_from[0])
        # Before the ranks connect: NCCL reads it then.
        prepare_environment(getattr(arguments.get("config"), "deterministic", False))
        rank, _ = init_process_group(hang_seconds)
        result = function(**arguments)
        leave_process_group()  # after an error the driver ends this process: leaving waits for dead ranks
        for name in environment:  # what runs here next is no rank
            del os.environ[name]
        return result if rank == 0 else None
