"""What would make the host wait for a GPU, caught on a CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ASKS = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "item", "equal.default")
"""Operations whose result, or its size, the host would have to wait for."""
_FROM_HOST = ("lift_fresh", "scalar_tensor")
"""Operations that make tensors of Python's numbers and lists."""


class NoDeviceSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operation would make the host wait for a GPU.

    That is where the host asks for values, and where it copies its own to the device: it waits
    until the device has them, which is after all that was queued. What ``to`` copies between
    devices is not seen where there is but one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of_host: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).removeprefix("aten.")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else ()
        is_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        assert not name.startswith(_ASKS), name
        assert not is_mask, f"{name} by a mask"
        result = func(*args, **kwargs or {})
        if name.startswith(_FROM_HOST):
            assert result.ndim == 0, f"{name} of a list"
            self._of_host.append(result)
        elif name != "fill_.Tensor":  # x[:2] = 1.0: no copy, the number is an argument
            leaves = tree_leaves((args, kwargs))
            assert not any(leaf is one for leaf in leaves for one in self._of_host), name
        return result
