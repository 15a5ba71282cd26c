"""The precision of float32 products, for a training alone."""

from typing import Literal

import lightning as L
import torch

from sciml_monarch.errors import InputError

MatmulPrecision = Literal["highest", "high", "medium"]


class ProductPrecision(L.Callback):
    """Sets ``torch.set_float32_matmul_precision`` for a fit, a validation, a test, and puts it back, however it ends.

    Args:
        precision: "highest": float32's accuracy; "high": TF32 on a GPU; "medium": bfloat16 operands.
    """

    def __init__(self, precision: MatmulPrecision) -> None:
        self.precision = precision
        self._before: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Sets it.

        Raises:
            InputError: PyTorch's newer setting is in use, beside which the precision cannot be set.
        """
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch refuses the question once the newer setting differs from it
            own = torch.backends.cuda.matmul.fp32_precision
            raise InputError(
                f"matmul_precision is {self.precision!r}, but torch.backends.cuda.matmul.fp32_precision is set, to "
                f"{own!r}; use one of them"
            ) from None
        self._before = before
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts it back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Puts it back: of a training that fails, Lightning tears nothing down."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
            self._before = None
