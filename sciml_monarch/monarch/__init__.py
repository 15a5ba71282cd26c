"""Monarch matrices: products of two block-diagonal matrices, up to fixed permutations. Needs torch only."""

from sciml_monarch.monarch import init
from sciml_monarch.monarch.functional import Factors, adjoint, multiply, n_params, to_dense
from sciml_monarch.monarch.linear import MonarchLinear
from sciml_monarch.monarch.project import project
from sciml_monarch.monarch.transform import MonarchTransform

__all__ = [
    "Factors",
    "MonarchLinear",
    "MonarchTransform",
    "adjoint",
    "init",
    "multiply",
    "n_params",
    "project",
    "to_dense",
]
