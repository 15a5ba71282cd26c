"""The networks and layers that ``benchmark_sparse.py`` times, with random weights and random batches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sciml_monarch.pde import OperatorTransformer


@dataclass(frozen=True)
class Network:
    """A network and what it is trained on.

    Attributes:
        package: Where it comes from.
        make: Makes it, dense, as a module from a batch to its loss.
        draw: Draws a batch of a number of samples.
        batch: Samples of a batch.
        tokens: Tokens of a sample.
        parameters: What the Monarch paper counts in the Monarch form, in millions.
        prepare: What is done to the network before it is sparsified.
    """

    package: str
    make: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, ...]]
    batch: int
    tokens: int
    parameters: float | None = None
    prepare: Callable[[nn.Module], None] | None = None


class SplitQKV(nn.Module):
    """Three maps in place of the fused one of queries, keys and values; the same function."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        self.maps = nn.ModuleList(nn.Linear(width, width, fused.bias is not None) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``(.., n)`` to ``(.., 3 n)``."""
        return torch.cat([f(x) for f in self.maps], -1)


class ImageLoss(nn.Module):
    """Cross entropy of an image classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns a scalar."""
        return cross_entropy(self.net(images).float(), labels)


class TextLoss(nn.Module):
    """The loss of a language model of transformers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns a scalar."""
        return self.net(input_ids=tokens, labels=tokens).loss


class FieldLoss(nn.Module):
    """Mean squared error of an operator."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, fields: Tensor) -> Tensor:
        """Returns a scalar."""
        return (self.net(fields) - fields[:, -1:]).square().mean()


def vit() -> nn.Module:
    """ViT-B/16 at 224 x 224 points, 86.6 million parameters."""
    import timm  # type: ignore[import-not-found]

    return ImageLoss(timm.create_model("vit_base_patch16_224"))


def split_attention(net: nn.Module) -> None:
    """Splits the fused maps of a network of timm."""
    for module in list(net.modules()):
        fused = getattr(module, "qkv", None)
        if isinstance(fused, nn.Linear):
            module.qkv = SplitQKV(fused)


def gpt2(width: int, n_layers: int, n_heads: int) -> nn.Module:
    """GPT-2 of one of its sizes, its vocabulary and its 1,024 positions."""
    from transformers import GPT2Config, GPT2LMHeadModel  # type: ignore[import-not-found]

    return TextLoss(GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=n_layers, n_head=n_heads, use_cache=False)))


def bert() -> nn.Module:
    """BERT-large with its head for masked tokens, 335 million parameters."""
    from transformers import BertConfig, BertForMaskedLM

    size = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return TextLoss(BertForMaskedLM(BertConfig(**size)))


def operator(width: int, n_layers: int, n_heads: int) -> nn.Module:
    """OperatorTransformer of patches of 4 x 4 points."""
    return FieldLoss(OperatorTransformer(10, 1, width, n_layers, n_heads, (4, 4)))


def _images(n: int) -> tuple[Tensor, ...]:
    return torch.randn(n, 3, 224, 224), torch.randint(0, 1000, (n,))


def _text(length: int, vocabulary: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randint(0, vocabulary, (n, length)),)


NETWORKS = {
    "ViT-B/16": Network("timm", vit, _images, 128, 197, 33.0, split_attention),
    "GPT-2 small": Network("transformers", lambda: gpt2(768, 12, 12), _text(1024, 50257), 16, 1024),
    "GPT-2 medium": Network("transformers", lambda: gpt2(1024, 24, 16), _text(1024, 50257), 8, 1024),
    "BERT-large": Network("transformers", bert, _text(512, 30522), 16, 512, 144.0),
    "OperatorTransformer": Network(
        "torch", lambda: operator(1024, 6, 16), lambda n: (torch.randn(n, 10, 64, 64),), 20, 256
    ),
    "OperatorTransformer, width 2048": Network(
        "torch", lambda: operator(2048, 4, 16), lambda n: (torch.randn(n, 10, 64, 64),), 20, 256
    ),
}
SMALL = {
    "OperatorTransformer": Network("torch", lambda: operator(32, 1, 2), lambda n: (torch.randn(n, 10, 16, 16),), 2, 16),
    "not there": Network("a_package_that_is_missing", vit, _images, 1, 1),
}
LAYERS = [
    (width, ratio, tokens)
    for width in (256, 512, 768, 1024, 2048, 4096)
    for ratio in (1, 4)
    for tokens in (256, 1024, 4096, 16384, 65536)
]
SMALL_LAYERS = [(32, 1, 8), (32, 4, 8)]
