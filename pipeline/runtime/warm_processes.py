"""Worker processes that are kept between the stages of a run, so that the next stage need not start any."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle

from pipeline.runtime import worker_process
from pipeline.runtime.own_code import list_worker_shadows
from pipeline.runtime.resources import WorkerNeed

cloudpickle.register_pickle_by_value(worker_process)
MAX_COMPILE_THREADS = 4
MAX_IDLE_SECONDS = 60.0  # after which idle processes end: they hold memory, and their nodes cannot be released


@dataclass(frozen=True)
class ProcessSpec:
    """What a process needs. Processes of equal specs are interchangeable."""

    need: WorkerNeed
    threads: int = 1  # of OpenMP and OpenCV, which by default take every core of the node
    kind: str = ""  # of workers that cannot share a process with others, see `ShardWorker.process_kind`

    @property
    def key(self) -> str:
        """Equal for equal specs."""
        return json.dumps([self.need.to_ray(), self.threads, self.kind], sort_keys=True)

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of such a process."""
        threads = str(self.threads)
        env = {"OMP_NUM_THREADS": threads, "OPENCV_FOR_THREADS_NUM": threads}
        env |= {"NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if not self.need.gpus:  # Ray does not hide GPUs from actors that request none
            env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        return env

    def default_environment(self) -> dict[str, str]:
        """Returns variables of such a process that those of its node take precedence over."""
        if not self.need.gpus:
            return {}
        # Captions of many lengths would fragment the memory of the GPU. torch.compile starts as many processes as the
        # node has cores, in each of its ranks, unless it is told.
        threads = str(min(self.threads, MAX_COMPILE_THREADS))
        return {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TORCHINDUCTOR_COMPILE_THREADS": threads}


def start_process(spec: ProcessSpec, options: Mapping[str, Any] | None = None) -> Any:
    """Starts a `WorkerProcess` with further Ray ``options`` and returns its handle."""
    actor = ray.remote(concurrency_groups={"control": 1})(worker_process.WorkerProcess)
    started = actor.options(**spec.need.actor_options(), **(options or {}))
    return started.remote(spec.environment(), list_worker_shadows(), spec.default_environment())


class WarmProcesses:
    """The idle processes of this driver. Thread-safe."""

    def __init__(self) -> None:
        self.idle: dict[str, list[Any]] = {}  # key of a spec -> handles
        self.node = ""  # of this driver; another in another Ray session
        self.is_shared = False  # several stages run at once: none is kept, another may wait for what it holds
        self.lock = threading.RLock()
        self.timer: threading.Timer | None = None

    def has(self, spec: ProcessSpec, count: int) -> bool:
        """Returns whether ``count`` processes of this spec are idle."""
        with self.lock:
            self._forget_other_session()
            return len(self.idle.get(spec.key, ())) >= count

    def acquire(self, spec: ProcessSpec) -> Any:
        """Returns an idle process of this spec, else starts one, after ending idle ones of other specs."""
        with self.lock:
            self._forget_other_session()
            if kept := self.idle.get(spec.key):
                return kept.pop()
            self.close()
            return start_process(spec)

    def keep(self, spec: ProcessSpec, process: Any) -> None:
        """Takes back an idle process, whose worker is freed; ends it while several stages run."""
        with self.lock:
            self._forget_other_session()
            if self.is_shared:
                ray.kill(process)
                return
            process.clear.remote()
            self.idle.setdefault(spec.key, []).append(process)
            if self.timer:
                self.timer.cancel()
            self.timer = threading.Timer(MAX_IDLE_SECONDS, self.close)
            self.timer.daemon = True
            self.timer.start()

    def close(self) -> None:
        """Ends all idle processes."""
        with self.lock:
            self._forget_other_session()
            for process in [process for kept in self.idle.values() for process in kept]:
                ray.kill(process)
            self.idle.clear()

    def _forget_other_session(self) -> None:
        """Forgets processes that ended with an earlier Ray session of this driver."""
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        if node != self.node:
            self.idle, self.node = {}, node


WARM = WarmProcesses()
