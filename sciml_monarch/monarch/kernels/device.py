"""On which device kernels are launched: Triton takes the current one, not the one where the tensors lie."""

import torch
from torch import Tensor


def device_of(x: Tensor) -> torch.cuda.device:
    """Makes the device of a tensor the current one inside a ``with`` block; changes nothing for one on the CPU."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
