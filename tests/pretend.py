"""Devices that are only pretended: every tensor lies on the CPU, and each is told on which device it would be.

No machine that tests run on has a GPU. With :class:`Devices` open, ``tensor.device`` gives the pretended device, ``to``
and ``device=`` move and create there, and an operation whose tensors lie on different devices raises what it would on a
GPU; so does ``numpy()``. What a real GPU allows passes: numbers without axes, CPU indices into a tensor of a GPU, and
copies. Copies from device to device are counted: ``moved[from, to]`` bytes, of tensors with an axis.

Two layers do this. What Python calls is seen by a function mode (devices as arguments, ``.device``), what the
operations inside are is seen by a dispatch mode, backward passes included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"copy_", "_to_copy", "_copy_from"}
_SEEN = {Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__}  # type: ignore[attr-defined]
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_ON_HOST = {Tensor.numpy, Tensor.__array__}
_MAKES = {"cpu": CPU, "cuda": GPU}


class Devices(TorchFunctionMode):
    """See the module. Raises RuntimeError as PyTorch does where devices mix."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakTensorKeyDictionary()
        self.moved: dict[tuple[str, str], int] = defaultdict(int)
        self.around: list[torch.device | None] = []  # devices of the tensors that the running function was given
        self.result: torch.device | None = None  # where the next results lie, whatever they are made of
        self._inner = _Operations(self)

    def __enter__(self) -> Devices:
        super().__enter__()
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        super().__exit__(*error)

    def of(self, tensor: Tensor) -> torch.device:
        """Where a tensor lies."""
        return self.places.get(tensor, CPU)  # type: ignore[no-any-return]

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Say where a tensor lies."""
        self.places[tensor] = device
        return tensor

    def place(self, module: nn.Module, device: torch.device = GPU) -> nn.Module:
        """Say that a module's own tensors lie on a device."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.put(tensor, device)
        return module

    @contextmanager
    def forced(self, device: torch.device) -> Iterator[None]:
        """While open, results lie on ``device``: what is made is a copy there."""
        self.result = device
        try:
            yield
        finally:
            self.result = None

    def moves(self, start: torch.device, end: torch.device, tensor: Tensor) -> None:
        """Count what crosses."""
        if start != end and tensor.dim():
            self.moved[str(start), str(end)] += tensor.numel() * tensor.element_size()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _SET_DATA:
            self.put(args[0], self.of(args[1]))
        if func in _SEEN:
            device = self.of(args[0])
            name = func.__self__.__name__
            return device if name == "device" else device.type == name.removeprefix("is_")
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func in _ON_HOST and self.of(args[0]).type != "cpu":
            raise TypeError(f"can't convert {self.of(args[0])} device type tensor to numpy: use Tensor.cpu() first")
        args, kwargs, target = self._target(func, args, kwargs, given)
        axes = [self.of(x) for x in given if x.dim()]
        around = next(iter(axes), next((self.of(x) for x in given), None))
        self._check_generator(kwargs, target if target is not None else around)
        self.around.append(around)
        try:
            out = func(*args, **kwargs)
        finally:
            self.around.pop()
        return self._placed(func, out, given, target, around)

    def _target(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> tuple[Any, Any, torch.device | None]:
        """Arguments without the device that they name, and that device."""
        target: torch.device | None = None
        named = getattr(func, "__name__", "")
        if kwargs.get("device") is not None:
            target = _device(kwargs["device"])
            kwargs["device"] = CPU
        elif named in ("cpu", "cuda") and given:
            target, args, kwargs = _MAKES[named], args[:1], {}
        elif named in ("to", "type_as") and len(args) > 1:
            first = args[1]
            if isinstance(first, Tensor):
                target = self.of(first)
            elif isinstance(first, str | torch.device | int) and not isinstance(first, bool):
                target = _device(first)
                args = (args[0], CPU, *args[2:])
        return args, kwargs, target

    def _placed(
        self, func: Any, out: Any, given: list[Tensor], target: torch.device | None, around: torch.device | None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if isinstance(out, Tensor) and target is not None:
            start = self.of(given[0]) if given and name in ("to", "cpu", "cuda", "type_as", "as_tensor") else target
            if start != target and given and name != "as_tensor":
                out = _Move.apply(out, self, start, target) if out.requires_grad else out.clone()
            if name == "as_tensor" and not given:
                start = CPU
            self.moves(start, target, out)
            return self.put(out, target)
        if around is not None:
            for x in tree_flatten(out)[0]:
                if isinstance(x, Tensor) and x not in self.places:
                    self.put(x, around)
        return out

    def _check_generator(self, kwargs: Any, device: torch.device | None) -> None:
        if kwargs.get("generator") is not None and device is not None and device.type != "cpu":
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found 'cpu'")


class _Move(torch.autograd.Function):
    """A copy to another device, whose gradient comes back from there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, devices: Devices, start: torch.device, target: torch.device) -> Tensor:
        ctx.devices, ctx.start = devices, start
        with devices.forced(target):
            return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with ctx.devices.forced(ctx.start):
            return grads[0].clone(), None, None, None


class _Operations(TorchDispatchMode):
    """The operations themselves: where results lie, and whether what they work on lies together."""

    def __init__(self, devices: Devices) -> None:
        super().__init__()
        self.devices = devices

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = self.devices
        name = func.overloadpacket.__name__
        flat = tree_flatten((args, kwargs or {}))[0]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        out = func(*args, **(kwargs or {}))
        place: torch.device | None
        if own.result is not None:
            place = own.result
        elif name in _COPIES:
            if name == "copy_" and len(tensors) > 1:
                own.moves(own.of(tensors[1]), own.of(tensors[0]), tensors[1])
            place = own.of(tensors[0])
        else:
            place = self._place(name, args, tensors)
        if place is None:
            place = next((p for p in reversed(own.around) if p is not None), CPU)
        given = set(map(id, tensors))
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor) and id(x) not in given:
                own.put(x, place)
        return out

    def _place(self, name: str, args: Any, tensors: list[Tensor]) -> torch.device | None:
        own = self.devices
        checked = tensors
        if name in _INDEXED:
            indices = [x for x in tree_flatten(args[1])[0] if isinstance(x, Tensor)]
            wrong = {own.of(x) for x in indices} - {CPU, own.of(args[0])}
            if wrong:
                raise RuntimeError(
                    f"indices should be either on cpu or on the same device as the indexed tensor "
                    f"({own.of(args[0])}), found {', '.join(map(str, wrong))}"
                )
            checked = [args[0], *(x for x in tensors if x is not args[0] and not any(x is i for i in indices))]
        places = {own.of(x) for x in checked if x.dim()} or {own.of(x) for x in checked}
        loose = {own.of(x) for x in checked if not x.dim()} - {CPU}
        if len(places | loose) > 1:
            found = ", ".join(f"{own.of(x)} {tuple(x.shape)}" for x in checked)
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} was given {found}")
        return next(iter(places | loose), None)


def _device(value: Any) -> torch.device:
    device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[Devices]:
    """Devices, with what torch says of a GPU answered as one would."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (64 << 30, 80 << 30))
    with Devices() as devices:
        yield devices
