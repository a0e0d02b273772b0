"""Turn operations that overwrite their input into ones that do not, so that any layer can be kept."""

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

_VIEW_OPS = {
    *(
        "chunk",
        "detach",
        "diagonal",
        "expand",
        "flatten",
        "getitem",
        "movedim",
        "narrow",
        "permute",
    ),
    *("ravel", "reshape", "select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind"),
    *("unflatten", "unfold", "unsqueeze", "view", "view_as"),
}


def remove_inplace_ops(graph: fx.Graph, writers: set[str]) -> None:
    """Make every operation give a new tensor, and let those after it use that.

    Parameters
    ----------
    graph : fx.Graph
    writers : set of str
        Modules that worked in place.

    Raises
    ------
    BackboneError
        If one writes into a part of a tensor that is used again.
    """
    order = {node: depth for depth, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = node.args[0] if node.args else node.kwargs.get("input")
        if not _replace_if_inplace(node, writers) or not isinstance(written, fx.Node):
            continue
        if any(
            order.get(user, -1) > order[node] for user in _find_alias_users(written, node, order)
        ):
            raise BackboneError(
                f"the network cannot be cut: {node.target} writes into a part of a tensor that is "
                "used again; write it without in-place operations"
            )
        for user in list(written.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(written, node)
    graph.lint()


def _replace_if_inplace(node: fx.Node, writers: set[str]) -> bool:
    """Turn one operation; say whether it worked in place."""
    if node.op == "call_module":
        return node.target in writers
    if node.op == "call_method":
        name = str(node.target)
        if name[-1] != "_" or name[-2] == "_":
            return False
        # What has no twin that gives a new tensor keeps its name, and is given a copy.
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
    twin = _OUT_OF_PLACE_OPS.get(node.target)
    if twin is None and name.endswith("_") and not name.endswith("__"):
        twin = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
    if twin is None:
        return False
    node.target = twin
    return True


def _find_alias_users(written: fx.Node, by: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """Users of tensors that share memory with the one written, but are not it."""
    found: set[fx.Node] = set()
    base = written
    while _is_view(base) and isinstance(base.args[0], fx.Node):
        base = base.args[0]
        found |= set(base.users) - {written}
    views = [u for u in written.users if _is_view(u) and order.get(u, -1) < order[by]]
    while views:
        view = views.pop()
        found |= set(view.users)
        views += [user for user in view.users if _is_view(user)]
    return found


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _VIEW_OPS
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _VIEW_OPS
