"""The end of a command: at once, also where a local Ray runs."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

RAYLET_TIMEOUT = 2.0  # seconds


def exit_process(code: int | str | None) -> NoReturn:
    """Ends this process as ``sys.exit(code)`` does, but without waiting for a local Ray that it started.

    `ray.shutdown`, which would run at exit, waits for Ray's processes one after the other, for 1.5 seconds. The raylet
    alone is worth waiting for, 0.05 seconds, as it ends its workers and agents; the kernel ends the others with this
    process (Ray asks for it: PR_SET_PDEATHSIG). Threads are waited for, exit functions run, streams are flushed.
    """
    session = sys.modules.get("pipeline.runtime.ray_session")  # imported where a command needed Ray
    if session is None or session.can_grow():
        sys.exit(code)
    import psutil
    import ray

    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    for raylet in raylets:
        raylet.terminate()
    psutil.wait_procs(raylets, timeout=RAYLET_TIMEOUT)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit.unregister(ray.shutdown)
    atexit._run_exitfuncs()  # as multiprocessing's children do
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
