"""Networks of timm: built without weights, then filled from a file, tensor by tensor."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from featurize.backbones.families import Family
from featurize.backbones.pretrained.timm_config import TimmConfig
from featurize.errors import BackboneError
from featurize.layer_spec import DEFAULT_POOL, PRE_LOGITS
from featurize.layers.graph import LayerGraph
from featurize.layers.tracing import trace

MAX_BYTES_PER_FILE_BYTE = 4  # float32 numbers from a file of 8-bit ones
SLACK_BYTES = 64 << 20  # position embeddings for larger images than the file has them for
MAX_STAGES = 8
_OPEN_CLIP_PROJECTION = "visual.head.proj.weight"  # timm's filters leave it out
INSTALL_COMMAND = "pip install 'headgraft[timm]'"

StateFilter = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


def require_timm(name: str) -> None:
    """Import timm.

    Parameters
    ----------
    name : str
        The backbone that needs it, for the message.

    Raises
    ------
    BackboneError
        If it is not installed.
    """
    try:
        import timm  # noqa: F401
    except ImportError as error:
        raise BackboneError(f"{name} needs timm: {INSTALL_COMMAND}") from error


def build_network(config: TimmConfig, size: int) -> nn.Module:
    """Build a network without its classifier and without weights, on the meta device.

    Parameters
    ----------
    config : TimmConfig
        Architecture and arguments.
    size : int
        Height and width of its images in pixels.

    Returns
    -------
    nn.Module
        In evaluation mode. Its tensors have shapes and no values.

    Raises
    ------
    BackboneError
        If timm cannot build it, or images of this size are not cut into whole patches.
    """
    return _build(config, size)[0]


def _build(config: TimmConfig, size: int) -> tuple[nn.Module, StateFilter | None]:
    """Build a network, and return the function by which timm renames other layouts of weights."""
    import timm
    import timm.layers

    arguments: dict[str, Any] = dict(config.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    if config.fixed_size:
        arguments["img_size"] = size
    filters: list[StateFilter | None] = []
    try:
        with torch.device("meta"), _record_filter(filters):
            network = timm.create_model(
                config.architecture, pretrained=True, num_classes=0, **arguments
            )
    except Exception as error:  # timm's constructors raise anything
        raise BackboneError(
            f"{config.name} cannot be built for images of {size} x {size} pixels: {error}"
        ) from error
    _check_patches(config, network, size)
    return network.requires_grad_(False).eval(), filters[0] if filters else None


def _check_patches(config: TimmConfig, network: nn.Module, size: int) -> None:
    """Check that images are cut into whole patches; the message names the nearest sizes."""
    projection = getattr(getattr(network, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        return  # patches that overlap fit any size
    side = projection.stride[0]
    if size % side:
        smaller = size // side * side
        sizes = " or ".join(str(n) for n in (smaller, smaller + side) if n)
        raise BackboneError(
            f"{config.name} cuts images into patches of {side} pixels, so {size} pixels do not "
            f"fit; use {sizes}"
        )


@contextmanager
def _record_filter(filters: list[StateFilter | None]) -> Iterator[None]:
    """Have timm tell its filter of weights in place of loading any."""
    from timm.models import _builder

    def record(model: nn.Module, **options: Any) -> None:
        filters.append(options.get("filter_fn"))

    load_pretrained = _builder.load_pretrained
    _builder.load_pretrained = record
    try:
        yield
    finally:
        _builder.load_pretrained = load_pretrained


def drop_idle_arguments(config: TimmConfig) -> TimmConfig:
    """Leave out arguments that say what the architecture does anyway.

    Then a network has one name, however its configuration is written.

    Parameters
    ----------
    config : TimmConfig
        With arguments as given.

    Returns
    -------
    TimmConfig
        With those that change the network.

    Raises
    ------
    BackboneError
        If timm cannot build it.
    """
    size = config.preprocess.crop
    for argument in config.arguments:
        others = tuple(other for other in config.arguments if other != argument)
        shorter = replace(config, arguments=others)
        described = _describe(build_network(config, size))
        try:
            is_idle = described == _describe(build_network(shorter, size))
        except BackboneError:  # another argument needs this one
            continue
        config = shorter if is_idle else config
    return config


def _describe(network: nn.Module) -> tuple[str, str, list[tuple[str, torch.Size]]]:
    """Describe what a network computes: its operations, its modules, the shapes of its tensors."""
    graph_module = fx.GraphModule(network, trace(network).graph)
    shapes = [(name, tensor.shape) for name, tensor in network.state_dict().items()]
    return graph_module.code, repr(network), shapes


def check_depth(config: TimmConfig, tensors: dict[str, Tensor], source: str) -> None:
    """Check that a file can hold a network, before anything is built.

    Parameters
    ----------
    config : TimmConfig
        The network.
    tensors : dict of str to Tensor
        Content of the file.
    source : str
        Name of the file, for the message.

    Raises
    ------
    BackboneError
        If the network is to have more blocks than the file has tensors.
    """
    depth = dict(config.arguments).get("depth", 0)
    if depth > len(tensors):
        raise BackboneError(f"{source} has {len(tensors)} tensors, too few for a depth of {depth}")


def convert_weights(
    config: TimmConfig, tensors: dict[str, Tensor], source: str
) -> tuple[nn.Module, dict[str, Tensor], Tensor | None]:
    """Build a network and find its tensors in a file of any layout that timm knows.

    Parameters
    ----------
    config : TimmConfig
        The network; its preprocessing gives the size of the images.
    tensors : dict of str to Tensor
        Content of the file: timm's own names, or those of the network's first publisher.
    source : str
        Name of the file, for messages.

    Returns
    -------
    network : nn.Module
        On the meta device.
    tensors : dict of str to Tensor
        Those of the network, float32, under timm's names. Some may be missing: what lies above
        a cut is not needed.
    projection : Tensor of shape (E, D), or None
        The weights of its classifying layer, if the file has them. Of CLIP's networks it projects
        to the space shared with the text tower.

    Raises
    ------
    BackboneError
        If the network cannot be built, is far larger than the file, or the file is not for it.
    """
    given = tensors
    network, state_filter = _build(config, config.preprocess.crop)
    wanted = network.state_dict()
    wanted_bytes = sum(4 * tensor.numel() for tensor in wanted.values())
    given_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if wanted_bytes > MAX_BYTES_PER_FILE_BYTE * given_bytes + SLACK_BYTES:
        raise BackboneError(
            f"{config.name} needs {wanted_bytes:,} bytes of weights, and {source} has "
            f"{given_bytes:,}: they do not belong together"
        )
    if state_filter is not None:
        try:
            tensors = _apply_filter(state_filter, dict(tensors), network)
        except Exception as error:  # filters assume the layouts they know
            raise BackboneError(
                f"{source} is not for {config.name}: {type(error).__name__}: {error}"
            ) from error
    projection = _find_projection(network, given, tensors)
    found = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name in wanted
    }
    if not found:
        raise BackboneError(
            f"{source} has no tensor of {config.name}; the file has "
            f"{', '.join(list(tensors)[:3])} ..., the network {', '.join(list(wanted)[:3])} ..."
        )
    return network, found, projection


def _apply_filter(
    state_filter: StateFilter, tensors: dict[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    """Call a filter of timm; some take the tensors alone."""
    takes_network = len(inspect.signature(state_filter).parameters) > 1
    return state_filter(tensors, network) if takes_network else state_filter(tensors)  # type: ignore[call-arg]


def _find_projection(
    network: nn.Module, given: dict[str, Tensor], renamed: dict[str, Tensor]
) -> Tensor | None:
    """Find the weights of the classifying layer, in a file as given or renamed by timm."""
    name = getattr(network, "pretrained_cfg", {}).get("classifier")
    projection = given.get(_OPEN_CLIP_PROJECTION)
    if projection is None and isinstance(name, str):
        projection = renamed.get(f"{name}.weight")
    return None if projection is None else projection.float().flatten(1)


def fill_network(network: nn.Module, tensors: dict[str, Tensor] | None) -> None:
    """Give the tensors of a network on the meta device their values, in place.

    What the file does not have becomes NaN: it can reach no feature unseen.

    Parameters
    ----------
    network : nn.Module
        As `convert_weights` returns it.
    tensors : dict of str to Tensor, or None
        Its weights; None for small random numbers, enough to time it.
    """
    from timm.models._manipulate import reinit_non_persistent_buffers

    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point() and tensors is not None:
            tensor.fill_(torch.nan)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.02, generator=generator).abs_()  # also a variance is positive
        else:
            tensor.zero_()
    reinit_non_persistent_buffers(network)
    if tensors is not None:
        fitting = {n: t for n, t in tensors.items() if state[n].shape == t.shape}
        network.load_state_dict(fitting, strict=False)


def load_network(
    config: TimmConfig, tensors: dict[str, Tensor] | None, source: str
) -> tuple[nn.Module, dict[str, Tensor] | None, Tensor | None]:
    """Build a network and fill it.

    Parameters
    ----------
    config : TimmConfig
        The network.
    tensors : dict of str to Tensor, or None
        Content of a file of weights; None for small random numbers.
    source : str
        Name of the file, for messages.

    Returns
    -------
    network : nn.Module
        On the CPU.
    tensors : dict of str to Tensor, or None
        Its weights, as `convert_weights` finds them.
    projection : Tensor or None
        As there.

    Raises
    ------
    BackboneError
        As there.
    """
    if tensors is None:
        network, projection = build_network(config, config.preprocess.crop), None
    else:
        network, tensors, projection = convert_weights(config, tensors, source)
    fill_network(network, tensors)
    return network, tensors, projection


def find_family(module: nn.Module, network: LayerGraph) -> Family | None:
    """Find the stages of a network of timm.

    Parameters
    ----------
    module : nn.Module
        The network; timm describes its stages in ``feature_info``.
    network : LayerGraph
        Its graph.

    Returns
    -------
    Family or None
        Ends of stages and ``pre_logits``; of a deep row of equal blocks the four quarters. None if
        it describes none.
    """
    usable = {name for name, layer in network.layers.items() if layer.usable}
    infos = [info for info in getattr(module, "feature_info", ()) if isinstance(info, dict)]
    stages = [
        str(info["module"])
        for info in infos
        if info.get("module") in usable and (info.get("reduction") or 4) > 2
    ]
    stages = list(dict.fromkeys(stages))
    if len(stages) > MAX_STAGES:
        stages = [stages[len(stages) * k // 4 - 1] for k in (1, 2, 3, 4)]
    stages.sort(key=lambda name: network.layers[name].depth)
    if PRE_LOGITS not in usable:
        return Family(tuple(stages)) if stages else None
    if stages and not network.has_weights_between(stages[-1], PRE_LOGITS):
        stages.pop()  # the pooled map of this stage is `pre_logits`
    axes = network.layers[PRE_LOGITS].axes
    # A network that does not pool leaves the choice to its user; most take the class token.
    takes_token = axes is not None and axes.has_class_token
    return Family((*stages, PRE_LOGITS), "token" if takes_token else DEFAULT_POOL)
