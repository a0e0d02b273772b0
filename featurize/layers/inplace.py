"""Replace in-place operations by out-of-place ones, so that the output of any layer survives."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from featurize.errors import BackboneError

_OUT_OF_PLACE_OPS: dict[Any, Callable[..., Any]] = {
    getattr(operator, "i" + name): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
} | {operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor}

_VIEW_NAMES = (
    "chunk detach diagonal expand flatten getitem movedim narrow permute ravel reshape select "
    "split squeeze swapaxes t transpose unbind unflatten unfold unsqueeze view view_as"
)
_VIEW_OPS = frozenset(_VIEW_NAMES.split())


def remove_inplace_ops(graph: fx.Graph, writers: set[str]) -> None:
    """Make every operation return a new tensor, and make later operations use it.

    Parameters
    ----------
    graph : fx.Graph
        The graph of a network; it is modified.
    writers : set of str
        Names of the modules that worked in place before they were changed.

    Raises
    ------
    BackboneError
        If an operation writes into a part of a tensor that is used again.
    """
    depths = {node: depth for depth, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = node.args[0] if node.args else node.kwargs.get("input")
        if not _replace_if_inplace(node, writers) or not isinstance(written, fx.Node):
            continue
        if any(
            depths.get(user, -1) > depths[node] for user in _find_alias_users(written, node, depths)
        ):
            raise BackboneError(
                f"the network cannot be cut: {node.target} writes into a part of a tensor that is "
                "used again; write it without in-place operations"
            )
        for user in list(written.users):
            if depths.get(user, -1) > depths[node]:
                user.replace_input_with(written, node)
    graph.lint()


def _replace_if_inplace(node: fx.Node, writers: set[str]) -> bool:
    """Replace one operation, and return whether it worked in place."""
    if node.op == "call_module":
        return node.target in writers
    if node.op == "call_method":
        name = str(node.target)
        if name[-1] != "_" or name[-2] == "_":
            return False
        # A method without an out-of-place variant is kept and applied to a copy.
        if hasattr(Tensor, name[:-1]):
            node.target = name[:-1]
            return True
        with node.graph.inserting_before(node):
            copied = node.graph.call_method("clone", (node.args[0],))
        node.args = (copied, *node.args[1:])
        return True
    if node.op != "call_function":
        return False
    if node.kwargs.get("inplace"):
        node.update_kwarg("inplace", False)
        return True
    name = getattr(node.target, "__name__", "")
    replacement = _OUT_OF_PLACE_OPS.get(node.target)
    if replacement is None and name.endswith("_") and not name.endswith("__"):
        replacement = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
    if replacement is None:
        return False
    node.target = replacement
    return True


def _find_alias_users(
    written: fx.Node, writer: fx.Node, depths: dict[fx.Node, int]
) -> set[fx.Node]:
    """Find the users of other tensors that share memory with the one that is written."""
    alias_users: set[fx.Node] = set()
    base = written
    while _is_view(base) and isinstance(base.args[0], fx.Node):
        base = base.args[0]
        alias_users |= set(base.users) - {written}
    views = [
        user for user in written.users if _is_view(user) and depths.get(user, -1) < depths[writer]
    ]
    while views:
        view = views.pop()
        alias_users |= set(view.users)
        views += [user for user in view.users if _is_view(user)]
    return alias_users


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _VIEW_OPS
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _VIEW_OPS
