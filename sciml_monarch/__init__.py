"""Monarch matrices in place of Fourier transforms and dense layers, for PDE surrogates and MRI reconstruction."""

from sciml_monarch import monarch, mri, pde
from sciml_monarch.errors import InputError
from sciml_monarch.hub import load, save
from sciml_monarch.monarch import MonarchLinear, MonarchTransform
from sciml_monarch.version import version

__version__ = version()

__all__ = ["InputError", "MonarchLinear", "MonarchTransform", "__version__", "load", "monarch", "mri", "pde", "save"]
