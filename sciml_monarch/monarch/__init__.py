"""Monarch matrices: products of two block-diagonal matrices, up to fixed permutations. Needs torch only."""

from sciml_monarch.monarch import init
from sciml_monarch.monarch.conv import MonarchConv1D, MonarchConv1x1
from sciml_monarch.monarch.convert import densify, sparsify
from sciml_monarch.monarch.convert_optimizer import carry_over
from sciml_monarch.monarch.functional import Factors, adjoint, multiply, n_params, to_dense
from sciml_monarch.monarch.linear import MonarchLinear
from sciml_monarch.monarch.project import project
from sciml_monarch.monarch.structure import restructure, structure
from sciml_monarch.monarch.transform import MonarchTransform

__all__ = [
    "Factors",
    "MonarchConv1D",
    "MonarchConv1x1",
    "MonarchLinear",
    "MonarchTransform",
    "adjoint",
    "carry_over",
    "densify",
    "init",
    "multiply",
    "n_params",
    "project",
    "restructure",
    "sparsify",
    "structure",
    "to_dense",
]
