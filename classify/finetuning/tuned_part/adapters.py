"""Low-rank adapters beside linear layers, trained in their place, by PEFT.

The method is LoRA (E. Hu et al., 2022, "LoRA: low-rank adaptation of large language models", ICLR).
"""

import re

from torch import fx, nn

from classify.errors import CallError

INSTALL_COMMAND = "pip install 'headgraft[lora]'"
_ADAPTER_MARK = ".lora_"  # in the names of PEFT's parameters


def add_adapters(trunk: fx.GraphModule, rank: int) -> None:
    """Put adapters beside the trainable linear layers, and freeze everything else, in place.

    At first they change nothing: one of their two matrices is zero.

    Parameters
    ----------
    trunk : fx.GraphModule
        The network, or a part of it. What is tuned requires gradients.
    rank : int
        Rank of the adapters.

    Raises
    ------
    CallError
        If PEFT is not installed, or no linear layer is tuned.
    """
    try:
        import peft
    except ImportError as error:
        raise CallError(f"--lora needs PEFT: {INSTALL_COMMAND}") from error
    names = _list_linear_layers(trunk)
    if not names:
        raise CallError(
            "--lora puts adapters beside linear layers, and what is tuned has none: leave --lora "
            "out, or take a transformer"
        )
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, names))
    )
    peft.inject_adapter_in_model(config, trunk)


def _list_linear_layers(trunk: fx.GraphModule) -> list[str]:
    """List the trainable linear layers that are called as such; others only lend their weights."""
    lending = {
        str(node.target).rpartition(".")[0] for node in trunk.graph.nodes if node.op == "get_attr"
    }
    return [
        name
        for name, module in trunk.named_modules()
        if type(module) is nn.Linear and module.weight.requires_grad and name not in lending
    ]


def merge_adapters(trunk: nn.Module) -> None:
    """Add adapters to the weights of their layers, and take them away, in place.

    Parameters
    ----------
    trunk : Module
        As `add_adapters` left it, trained. Afterwards its tensors have their old names.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [
        (name, layer) for name, layer in trunk.named_modules() if isinstance(layer, LoraLayer)
    ]
    for name, layer in adapted:
        layer.merge()
        trunk.set_submodule(name, layer.get_base_layer())


def get_adapted_name(name: str) -> str:
    """Return the name of the weight that a parameter of an adapter changes.

    Parameters
    ----------
    name : str
        Name of a parameter.

    Returns
    -------
    str
        The name itself if the parameter is not one of an adapter.
    """
    layer, mark, _ = name.partition(_ADAPTER_MARK)
    return f"{layer}.weight" if mark else name
