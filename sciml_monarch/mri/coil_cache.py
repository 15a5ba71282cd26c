"""Coil maps on disk, found again by what they were computed from."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.files import replacing

_DIGEST = hashlib.sha256().digest_size


def content_key(block: Tensor, options: str) -> str:
    """Computes the name under which maps are kept.

    Args:
        block: The part of k-space that the maps depend on.
        options: Everything else that they depend on, the version of the program included.

    Returns:
        64 hexadecimal digits.
    """
    content = hashlib.sha256(f"{tuple(block.shape)} {block.dtype} {options}\n".encode())
    content.update(torch.view_as_real(block.detach().cpu().resolve_conj()).contiguous().numpy().tobytes())
    return content.hexdigest()


@dataclass(frozen=True)
class MapCache:
    """A folder of maps, which many processes may use at once.

    A file is a SHA-256 digest and the ``.npy`` form of the maps behind it; it appears whole or not at all. Two
    processes that miss at the same time both compute, and write the same.

    Args:
        folder: Made when something is written; deleting it is safe at any time.
    """

    folder: Path

    def get(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """Reads maps; None where there are none, or the file is damaged or of another shape."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, body = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        maps = np.load(io.BytesIO(body), allow_pickle=False)
        if maps.shape != shape or maps.dtype != np.complex64:
            return None
        return torch.from_numpy(maps)

    def put(self, key: str, maps: Tensor) -> None:
        """Writes maps.

        Raises:
            InputError: The folder cannot be written to, or the disk is full.
        """
        body = io.BytesIO()
        np.save(body, maps.detach().cpu().resolve_conj().numpy())
        content = body.getvalue()
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)

    def path(self, key: str) -> Path:
        """The file of a key; spread over subfolders, since a folder of 100,000 files is slow."""
        return Path(self.folder) / key[:2] / f"{key}.maps"
