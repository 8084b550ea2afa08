"""A GPU that is none: tensors that say they lie on one, checked as CUDA checks them, and counted where CUDA would wait.

Tensors are those of the CPU, with real values. Which of them "lie on the GPU" is kept by their storage:

- a function mode makes ``cuda`` a valid device of factories and copies, and the answer of ``tensor.device``;
- a dispatch mode sees every operator, those of the backward pass too. It raises `DeviceMixupError` for tensors of
  both devices, as CUDA would, and counts what makes the host wait for the device.

Not simulated: streams, kernels, autocast to bfloat16 (its casts run as they do on a CPU), torch.compile.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # imported by the first call of a mode otherwise, with what is patched below
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# Operators whose result the host needs, so that it waits for all that the device has been given to do.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
IS_CUDA, IS_CPU = (vars(torch._C.TensorBase)[name].__get__ for name in ("is_cuda", "is_cpu"))
READS = {"item", "tolist", "__float__", "__bool__", "__int__", "__index__", "__contains__"}
MIXING_ALLOWED = {"copy_", "_to_copy", "set_", "resize_", "record_stream"}

# Functions in C++ that make tensors of their own by the options of a given one, which here are those of the CPU.
WHOLE = {torch.quantile, torch.Tensor.quantile}


class DeviceMixupError(RuntimeError):
    """An operator was given tensors of the GPU and of the CPU."""


class SimulatedGpu(TorchFunctionMode):
    """The device. Use `simulated_gpu`, which also makes torch.cuda say that it is there.

    Attributes:
        waits: places in the code where the host waited for the device -> how often.
        copies: places where a blocking copy sent data to the device, for which the host waits too -> how often.
        bytes_sent: of those and of other copies to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[int, StorageWeakRef] = {}
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.bytes_sent = self.launched = 0
        self.inside = False  # one of `WHOLE`
        self.functions: dict[Any, Callable[..., Any]] = {
            torch.Tensor.device.__get__: self._device_of,
            IS_CUDA: self.holds,
            IS_CPU: lambda tensor: not self.holds(tensor),
            torch.Tensor.get_device: lambda tensor: 0 if self.holds(tensor) else -1,
            torch.Tensor.to: self._to,
            torch.Tensor.cuda: lambda tensor, *_, **__: self._move(tensor, GPU, False),
            torch.Tensor.cpu: lambda tensor, *_, **__: self._move(tensor, CPU, False),
            torch.Tensor.pin_memory: lambda tensor, *_: tensor,
            torch.Tensor.numpy: self._read_by_numpy(torch.Tensor.numpy),
            torch.Tensor.__array__: self._read_by_numpy(torch.Tensor.__array__),
        }

    def holds(self, tensor: Tensor) -> bool:
        """Returns whether a tensor lies on the GPU."""
        return tensor.untyped_storage()._cdata in self.stored if _has_storage(tensor) else False

    def put(self, value: Any) -> Any:
        """Makes the tensors in ``value`` those of the GPU; returns it."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            # The weak reference keeps the number from being used again.
            self.stored.setdefault(storage._cdata, StorageWeakRef(storage))
        return value

    def group_tensors(self, lists: list[list[Tensor]]) -> Any:
        """As torch's function in C++, which asks tensors for their device past this mode."""
        groups = _group_tensors_by_device_and_dtype(lists)  # type: ignore[arg-type]
        return {
            (self._device_of(parts[0][0]), dtype): (parts, at)  # type: ignore[arg-type]
            for (_, dtype), (parts, at) in groups.items()
        }

    def forget_counts(self) -> None:
        """Counts from zero."""
        self.waits.clear()
        self.copies.clear()
        self.bytes_sent = self.launched = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if own := self.functions.get(func) if _is_hashable(func) else None:
            return own(*args, **kwargs)
        if getattr(func, "__name__", "") in READS and isinstance(args[0], Tensor) and self.holds(args[0]):
            self._count_wait()
            with self._uncounted():
                return func(*args, **kwargs)
        if func in WHOLE:
            return self._call_whole(func, args, kwargs)
        kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        if device is None:
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        made = func(*args, **kwargs)
        if torch.device(device).type == "cpu":
            return made
        if func is torch.tensor or func is torch.as_tensor:  # from values of the host
            self._count_sent(made, blocking=True)
        return self.put(made)

    def _call_whole(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = _tensors((args, kwargs))
        on_gpu = any(self.holds(tensor) for tensor in given)
        if on_gpu and not all(self.holds(tensor) for tensor in given if tensor.ndim):
            raise DeviceMixupError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu")
        self.inside = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.inside = False
        return self.put(result) if on_gpu else result

    def _device_of(self, tensor: Tensor) -> torch.device:
        if self.holds(tensor):
            return GPU
        return torch.Tensor.device.__get__(tensor)

    def _read_by_numpy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.holds(tensor):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            return function(tensor, *args, **kwargs)

        return read

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        like = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
        if like is not None:
            args = (self._device_of(like), like.dtype, *args[1:])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
        copy = kwargs.get("copy", False) or any(part is True for part in args[2:])
        goal = self._device_of(tensor) if device is None else GPU if device.type == "cuda" else device
        moved = self._move(tensor, goal, bool(non_blocking))
        if dtype is None and memory_format is None and not copy:
            return moved
        return moved.to(dtype or moved.dtype, copy=copy and moved is tensor, memory_format=memory_format)

    def _move(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        if (device.type == "cuda") == self.holds(tensor):
            return tensor
        if device.type == "meta":
            return torch.Tensor.to(tensor, device)
        moved = tensor.clone()
        if device.type == "cuda":
            self._count_sent(tensor, not non_blocking)
            return self.put(moved)
        if not non_blocking:
            self._count_wait()
        # The dispatch mode has put the copy where its source lies.
        self.stored.pop(moved.untyped_storage()._cdata, None)
        return moved

    def _count_sent(self, tensor: Tensor, blocking: bool) -> None:
        self.bytes_sent += tensor.numel() * tensor.element_size()
        if blocking:
            self.copies[_find_place()] += 1

    def _count_wait(self) -> None:
        self.waits[_find_place()] += 1

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        kept = self.waits.copy()
        yield
        self.waits = kept


class _Operators(TorchDispatchMode):
    """Checks the devices of every operator's tensors, and puts its results where they lie."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, name, given = self.gpu, func.__name__.split(".")[0], _tensors((args, kwargs))
        on_gpu = [tensor for tensor in given if gpu.holds(tensor)]
        if not on_gpu or gpu.inside:
            return func(*args, **(kwargs or {}))
        gpu.launched += 1
        others = [tensor for tensor in given if tensor.ndim and not gpu.holds(tensor)]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self._check_indices(args)
            others = [tensor for tensor in others if tensor is args[0]]
        if others and name not in MIXING_ALLOWED and not name.startswith("_foreach_copy"):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in others)
            raise DeviceMixupError(
                f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu (of shape {shapes})"
            )
        if name == "copy_":
            return self._copy(func, args, kwargs or {})
        if name in WAITING:
            gpu._count_wait()
        return gpu.put(func(*args, **(kwargs or {})))

    def _check_indices(self, args: Sequence[Any]) -> None:
        for index in args[1]:
            if index is None:
                continue
            if index.dtype in (torch.bool, torch.uint8):  # becomes `nonzero`
                self.gpu._count_wait()
            elif index.ndim and not self.gpu.holds(index):
                self.gpu._count_sent(index, blocking=True)

    def _copy(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        target, source = args[:2]
        blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if self.gpu.holds(target) and not self.gpu.holds(source):
            if source.ndim:
                self.gpu._count_sent(source, blocking)
        elif not self.gpu.holds(target) and blocking:
            self.gpu._count_wait()
        return func(*args, **kwargs)


class _Event:
    """An event of a stream, at once over."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class _Stream(_Event):
    """A stream, whose work is done at once."""

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Generator(torch.Generator):
    """A generator of the GPU, as one of the CPU."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


class _Autocast(torch.autocast):
    """Autocast of the GPU, as that of the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextmanager
def simulated_gpu() -> Iterator[SimulatedGpu]:
    """Within the context torch has one GPU."""
    gpu, nothing = SimulatedGpu(), lambda *_, **__: None
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "Simulated GPU",
        "max_memory_allocated": lambda *_: 0,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda stream: stream,
        "Stream": _Stream,
        "Event": _Event,
    }
    answers |= dict.fromkeys(
        ("set_device", "synchronize", "manual_seed", "manual_seed_all", "empty_cache", "reset_peak_memory_stats"),
        nothing,
    )
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        # A method that no mode sees.
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda *_: None))
        # Loading threads pin, and modes hold in their own thread alone.
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor))
        stack.enter_context(mock.patch.object(clip_grad, "_group_tensors_by_device_and_dtype", gpu.group_tensors))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        # In a process that used ZeRO 3, DeepSpeed has put a function of its own there, which asks the real device.
        stack.enter_context(mock.patch.object(functional, "linear", torch._C._nn.linear))
        stack.enter_context(_Operators(gpu))
        stack.enter_context(gpu)
        yield gpu


@contextmanager
def simulated_deepspeed() -> Iterator[None]:
    """Within the context, and that of `simulated_gpu`, DeepSpeed takes the simulated GPU for its device."""
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}):
        from deepspeed.accelerator import get_accelerator

        with ExitStack() as stack:
            for name in ("device_name", "current_device_name"):
                stack.enter_context(mock.patch.object(get_accelerator(), name, lambda *_: "cuda:0"))
            yield


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and _has_storage(leaf)]


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _is_hashable(func: Any) -> bool:
    try:
        hash(func)
    except TypeError:
        return False
    return True


def _find_place() -> str:
    """Returns the innermost line outside of this file and of torch, as ``folder/file.py:line code``."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and "/torch/" not in frame.filename and "contextlib" not in frame.filename:
            return f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno} {frame.line}"
    return "nowhere"
