"""A U-Net for fields on periodic or bounded grids: the convolutional baseline."""

from torch import Tensor, cat, nn
from torch.nn.functional import pad

from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import Operator, Prepared, check_counts
from sciml_monarch.pde.padding import periodic_pad

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
N_LEVELS = 4


class _DoubleConv(nn.Module):
    """Twice: 3-point convolution, normalisation over channels and grid, GELU."""

    def __init__(self, in_channels: int, out_channels: int, n_dim: int, periodic: bool) -> None:
        super().__init__()
        self.n_dim, self.periodic = n_dim, periodic
        self.conv1 = _CONV[n_dim](in_channels, out_channels, 3, bias=False)
        self.conv2 = _CONV[n_dim](out_channels, out_channels, 3, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(1, out_channels), nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = nn.functional.gelu(norm(conv(self._padded(x))))
        return x

    def _padded(self, x: Tensor) -> Tensor:
        return periodic_pad(x, (1,) * self.n_dim) if self.periodic else pad(x, (1,) * (2 * self.n_dim))


class UNet(Operator):
    """U-Net (Ronneberger et al., 2015) with four levels; 24.6 million parameters at the default width in 2-D.

    That is the size of the U-Net that the FNO paper compares with (24,950,491; its code is not public).

    Args:
        in_channels: History frames times fields.
        out_channels: Fields.
        width: Channels of the finest level; they double at each level.
        n_dim: Dimensions of the grid, 1 to 3. Each axis must have a multiple of 16 points.
        periodic: Whether fields are continued periodically, or by zeros.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 57, n_dim: int = 2, periodic: bool = True
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels, width=width)
        super().__init__(
            dict(
                in_channels=in_channels,
                out_channels=out_channels,
                width=width,
                n_dim=n_dim,
                periodic=periodic,
            )
        )
        if n_dim not in _CONV:
            raise InputError(f"n_dim is {n_dim}; a U-Net has 1, 2 or 3 dimensions")
        channels = [width * 2**level for level in range(N_LEVELS + 1)]
        self.pool = _POOL[n_dim](2)
        self.down = nn.ModuleList(
            _DoubleConv(i, o, n_dim, periodic) for i, o in zip([in_channels, *channels[:-1]], channels, strict=True)
        )
        self.up = nn.ModuleList(_CONV_TRANSPOSE[n_dim](2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.merge = nn.ModuleList(_DoubleConv(2 * c, c, n_dim, periodic) for c in reversed(channels[:-1]))
        self.head = _CONV[n_dim](width, out_channels, 1)

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network; see :class:`Operator`.

        Raises:
            InputError: The grid has another number of axes, or an axis is not a multiple of 16 points.
        """
        self.check_channels(x)
        grid = tuple(x.shape[2:])
        if len(grid) != self.config["n_dim"] or any(n % 2**N_LEVELS for n in grid):
            raise InputError(
                f"a U-Net of {self.config['n_dim']} dimensions and {N_LEVELS} levels cannot take a grid {grid}; "
                f"each axis must be a multiple of {2**N_LEVELS} points"
            )
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(cat([skips.pop(), up(x)], 1))
        return self.head(x)
