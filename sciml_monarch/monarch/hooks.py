"""Whether a module may be computed in another way than by its call."""

from torch import nn


def is_watched(module: nn.Module) -> bool:
    """Whether a call of a module runs more, or other, than its class' ``forward``: hooks, or one of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in module.__dict__ or any(hooks)


def is_only(module: nn.Module, kind: type[nn.Module], weight: str | None = "weight") -> bool:
    """Whether calling a module does what its class does and nothing else, so that another way may be taken.

    Subclasses, parametrised modules (which are subclasses), hooks, weights that a hook computes, and a ``forward`` of
    the object's own are what the call is for.

    Args:
        module: The module.
        kind: Its class.
        weight: Name of the parameter that hooks would compute; ``None``: it has none of its own.
    """
    own = weight is None or weight in module._parameters
    return type(module) is kind and own and not is_watched(module)
