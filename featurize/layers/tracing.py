"""Trace a network: its forward as a graph of operations, each with the module it belongs to."""

import inspect
import sys
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import NodePathTracer

from featurize.errors import BackboneError
from featurize.layers.inplace import remove_inplace_ops


class Trace(NamedTuple):
    """A traced network.

    Attributes
    ----------
    graph : fx.Graph
        The operations, none of them in place, with one placeholder: the images.
    names : dict of fx.Node to str
        Dotted name of the module, or of the operation within its module, of each node.
    output : fx.Node or None
        The operation that gives the network's output; None if it gives several.
    """

    graph: fx.Graph
    names: dict[fx.Node, str]
    output: fx.Node | None


def trace(module: nn.Module) -> Trace:
    """Trace a network operation by operation, or else as a sequence of modules.

    Optional arguments of its forward keep their defaults.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, on any device. Its in-place modules are turned off.

    Returns
    -------
    Trace
        The graph shares its weights with the module.

    Raises
    ------
    BackboneError
        If the network can be traced in neither way, or if it normalises by the statistics of each
        batch.
    """
    inplace_modules = _turn_off_inplace_modules(module)
    tracers = [NodePathTracer(**_leaves_of(module)), _SequentialTracer(leaf_modules=[])]
    first_error: Exception | None = None
    for tracer in tracers:
        try:
            graph = tracer.trace(module, _default_arguments(module))
        except Exception as error:  # tracing runs the network's own code
            first_error = first_error or error
            continue
        _remove_fixed_arguments(graph)
        names = {
            node: name for node, name in tracer.node_to_qualname.items() if node in graph.nodes
        }
        remove_inplace_ops(graph, inplace_modules)
        (output,) = (node for node in graph.nodes if node.op == "output")
        given = output.args[0]
        return Trace(graph, names, given if isinstance(given, fx.Node) else None)
    raise BackboneError(
        f"{type(module).__name__} can be cut nowhere: its forward cannot be traced "
        f"({first_error}), and it is no sequence of modules. Pass its front part alone, as an "
        "nn.Sequential"
    ) from first_error


def _turn_off_inplace_modules(module: nn.Module) -> set[str]:
    """Turn off in-place modules, and return their names."""
    inplace_modules = set()
    for name, submodule in module.named_modules():
        if isinstance(submodule, _BatchNorm) and submodule.running_mean is None:
            raise BackboneError(
                f"{name or 'the network'} normalises by the statistics of each batch, so an "
                "image's features would depend on the others; give it statistics of its own"
            )
        if getattr(submodule, "inplace", False):
            submodule.inplace = False
            inplace_modules.add(name)
    return inplace_modules


def _leaves_of(module: nn.Module) -> dict[str, Any]:
    """Return what is not to be entered, as options of a tracer."""
    if not is_of_timm(module):
        return {"leaf_modules": []}
    # timm itself lists what its own tracing must not enter.
    from timm.layers import get_notrace_functions, get_notrace_modules

    return {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": tuple(get_notrace_functions()),
    }


def is_of_timm(module: nn.Module) -> bool:
    """Tell whether a network is built of timm's modules.

    Parameters
    ----------
    module : nn.Module
        Any network.

    Returns
    -------
    bool
        True if timm is imported and one of its classes occurs in the network.
    """
    return "timm" in sys.modules and any(
        type(submodule).__module__.startswith("timm.") for submodule in module.modules()
    )


def _default_arguments(module: nn.Module) -> dict[str, Any] | None:
    """Return the optional arguments of a forward; as variables they would take unused branches."""
    _, *others = inspect.signature(type(module).forward).parameters.values()  # after `self`
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    defaults = {
        parameter.name: parameter.default
        for parameter in others
        if parameter.kind in named and parameter.default is not inspect.Parameter.empty
    }
    return defaults or None


def _remove_fixed_arguments(graph: fx.Graph) -> None:
    """Remove the placeholders of fixed arguments, and the assertions that they are fixed."""
    _, *fixed = (node for node in graph.nodes if node.op == "placeholder")
    downstream = dict.fromkeys(fixed)
    for node in graph.nodes:
        if any(argument in downstream for argument in node.all_input_nodes):
            downstream[node] = None
    for node in reversed(downstream):
        if not node.users:
            graph.erase_node(node)


class _SequentialTracer(NodePathTracer):  # type: ignore[misc]
    """A tracer that enters `nn.Sequential` only; every other module is a single operation."""

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        return not isinstance(m, nn.Sequential)
