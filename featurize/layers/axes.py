"""The axes of layers: which of them hold channels, and how many tokens are no patches."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from featurize.errors import BackboneError
from featurize.layers.pooling import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, VECTOR, Axes
from featurize.layers.tracing import trace

MAX_PREFIX_TOKENS = 32
_CLASS_TOKEN_NAMES = ("cls_token", "class_token", "class_embedding")
# Modules whose output has channels first by definition.
_CHANNELS_FIRST_MODULES = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)

Shapes = dict[str, tuple[int, ...]]


class AxesFinder:
    """Finds what the axes of a network's layers mean, by what grows with the images.

    Parameters
    ----------
    module : fx.GraphModule
        The whole traced network.
    size : int
        Height and width of its images in pixels.
    build : callable, optional
        Builds the same network for images of another size, on any device, by that size. It is
        needed for networks that take images of one size only.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of each node's tensor for a batch of two images, by node name.

    Raises
    ------
    BackboneError
        If the network cannot take such images.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        size: int,
        build: Callable[[int], nn.Module] | None = None,
    ) -> None:
        self._module, self._size = module, size
        self.shapes, error = infer_shapes(module, 2, size)
        if error is not None or not self.shapes:
            raise BackboneError(
                f"the network cannot take images of {size} x {size} pixels: {error}"
            )
        self._larger_size = size + 64
        self._larger_shapes, error = infer_shapes(module, 3, self._larger_size)
        # Some networks refuse another size; some bring every image to their own.
        if build is not None and (error is not None or not self._grows()):
            rebuilt = _infer_rebuilt_shapes(build, 2 * size)
            if rebuilt:
                self._larger_size, self._larger_shapes = 2 * size, rebuilt
        self._grid_size = _find_patch_grid(module, self.shapes)
        self._has_class_token = any(
            name.rpartition(".")[2] in _CLASS_TOKEN_NAMES for name, _ in module.named_parameters()
        )

    def _grows(self) -> bool:
        """Tell whether larger images give any larger tensor."""
        images = {node.name for node in self._module.graph.nodes if node.op == "placeholder"}
        return any(
            self._larger_shapes[name][1:] != shape[1:]
            for name, shape in self.shapes.items()
            if name in self._larger_shapes and name not in images and shape[:1] == (2,)
        )

    def find(self, node: fx.Node) -> Axes | str:
        """Find the axes of a node's tensor.

        Parameters
        ----------
        node : fx.Node
            Of the network, one with a shape.

        Returns
        -------
        Axes or str
            A clause that says why the layer cannot be pooled, if the axes are not known.
        """
        shape, larger = self.shapes[node.name], self._larger_shapes.get(node.name)
        if len(shape) < 2 or shape[0] != 2 or (larger is not None and larger[0] != 3):
            return "its first axis is not the batch"
        if larger is not None and len(larger) != len(shape):
            larger = None
        if len(shape) == 2:
            return Axes(VECTOR)
        if len(shape) == 3:
            return self._find_tokens(shape, larger)
        if len(shape) != 4:
            return f"it gives {len(shape) - 1} axes an image, and maps have 3"
        return self._find_channels(node, shape, larger)

    def _find_tokens(self, shape: tuple[int, ...], larger: tuple[int, ...] | None) -> Axes | str:
        n_prefix: int | None = None
        if larger is not None and larger[2] == shape[2]:
            n_prefix = self._count_prefix_tokens(shape[1], larger[1])
        elif larger is None and self._grid_size is not None:
            # A network that takes one size only: what its patches are is still known.
            n_more = shape[1] - self._grid_size
            n_prefix = n_more if 0 <= n_more <= MAX_PREFIX_TOKENS else None
        if n_prefix is None:
            return "what its axes mean is not known"
        return Axes(TOKENS, n_prefix, self._has_class_token and n_prefix > 0)

    def _count_prefix_tokens(self, n_tokens: int, n_larger: int) -> int | None:
        """Count the tokens that are no patches: the others are squares that grow as images do."""
        ratio = self._larger_size / self._size
        for n_prefix in range(min(MAX_PREFIX_TOKENS, n_tokens - 1) + 1):
            side, larger_side = math.isqrt(n_tokens - n_prefix), math.isqrt(n_larger - n_prefix)
            are_squares = (side**2, larger_side**2) == (n_tokens - n_prefix, n_larger - n_prefix)
            if are_squares and side < larger_side and abs(larger_side - side * ratio) < ratio:
                return n_prefix
        return None

    def _find_channels(
        self, node: fx.Node, shape: tuple[int, ...], larger: tuple[int, ...] | None
    ) -> Axes | str:
        if larger is not None:
            grown = [axis for axis in (1, 2, 3) if larger[axis] != shape[axis]]
            if grown == [2, 3] and self._grows_as_sides(shape[2:], larger[2:]):
                return Axes(CHANNELS_FIRST)
            if grown == [1, 2] and self._grows_as_sides(shape[1:3], larger[1:3]):
                return Axes(CHANNELS_LAST)
        if shape[2:] == (1, 1):
            return Axes(CHANNELS_FIRST)
        if node.op == "call_module" and isinstance(
            self._module.get_submodule(str(node.target)), _CHANNELS_FIRST_MODULES
        ):
            return Axes(CHANNELS_FIRST)
        return "which of its axes holds the channels is not known"

    def _grows_as_sides(self, sides: tuple[int, ...], larger_sides: tuple[int, ...]) -> bool:
        """Tell sides of a map from lengths of sequences, which grow as the area does."""
        ratio = math.log(self._larger_size / self._size)
        growths = [
            math.log(larger / side) for side, larger in zip(sides, larger_sides, strict=True)
        ]
        return all(abs(growth - ratio) < abs(growth - 2 * ratio) for growth in growths)


def _infer_rebuilt_shapes(build: Callable[[int], nn.Module], size: int) -> Shapes:
    """Infer the shapes of a network built for another size; none if it cannot be built so."""
    try:
        module = build(size).eval()
        traced = trace(module)
        shapes, error = infer_shapes(fx.GraphModule(module, traced.graph), 3, size)
    except Exception:  # building and tracing run the network's own code
        return {}
    return {} if error is not None else shapes


def _find_patch_grid(module: fx.GraphModule, shapes: Shapes) -> int | None:
    """Find the number of patches of the one convolution that cuts the image into patches."""
    grids = []
    for node in module.graph.nodes:
        if node.op != "call_module" or node.name not in shapes:
            continue
        submodule = module.get_submodule(str(node.target))
        if (
            isinstance(submodule, nn.Conv2d)
            and submodule.kernel_size == submodule.stride
            and submodule.kernel_size[0] > 1
        ):
            grids.append(math.prod(shapes[node.name][2:]))
    return grids[0] if len(grids) == 1 else None


def infer_shapes(module: fx.GraphModule, batch: int, size: int) -> tuple[Shapes, Exception | None]:
    """Infer the shape of every node's tensor; values are computed only where shapes need them.

    Parameters
    ----------
    module : fx.GraphModule
        A traced network, which may be on the meta device.
    batch : int
        Number of images.
    size : int
        Height and width of the images in pixels.

    Returns
    -------
    shapes : dict of str to tuple of int
        By node name; up to the first error.
    error : Exception or None
        The error, if the network cannot take such images.
    """
    interpreter = _ShapeInterpreter(copy_to_meta(module))
    interpreter.run_until_error(torch.empty(batch, 3, size, size, device="meta"))
    if interpreter.error:  # control flow that depends on values needs real ones
        # Of a copy: some networks keep results of a forward, and their weights may come later.
        with_values = _ShapeInterpreter(_copy_with_values(module))
        with_values.run_until_error(torch.zeros(batch, 3, size, size))
        interpreter = max(interpreter, with_values, key=lambda candidate: len(candidate.shapes))
    return interpreter.shapes, interpreter.error


def copy_to_meta(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a network without the values of its tensors.

    Parameters
    ----------
    module : fx.GraphModule
        A traced network.

    Returns
    -------
    fx.GraphModule
        On the meta device.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(module, memo)


def _copy_with_values(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a network; what has no values gets zeros."""
    copied = copy.deepcopy(module)
    if any(tensor.is_meta for tensor in (*copied.parameters(), *copied.buffers())):
        copied = copied.to_empty(device="cpu")
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.detach().zero_()
    return copied


class _ShapeInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: Shapes = {}
        self.error: Exception | None = None

    def run_until_error(self, x: Tensor) -> None:
        """Run until the end, or until a node raises an error, which is stored."""
        try:
            with torch.no_grad():
                self.run(x)
        except Exception as error:
            # Some networks accept one size only; the shapes before the error are still known.
            self.error = error

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
        return result
