"""The four strategies: which one a situation asks for, and the commands that carry each out."""

import shlex
from collections.abc import Sequence

from classify.errors import CallError
from featurize.backbones.families import DEFAULT_WEIGHTS
from featurize.cache.reader import FeatureCache

SIZES = ("small", "large")
SIMILARITIES = ("similar", "different")
STRATEGIES = {
    ("small", "similar"): "linear-probe",
    ("small", "different"): "truncated-probe",
    ("large", "similar"): "finetune",
    ("large", "different"): "retrain",
}
DESCRIPTIONS = {
    "linear-probe": "freeze the whole network, and train a linear head on its last layer",
    "truncated-probe": "keep the first layers only, frozen, and train a head where they are cut",
    "finetune": "a new head, and train the whole network on from its weights",
    "retrain": "a new classifier of your choice, and train everything",
}


def describe_similarity(similarity: str) -> str:
    """The similarity in words: ``similar to``, or ``different from`` the source."""
    return f"{similarity} {'to' if similarity == 'similar' else 'from'} the source"


def check_size_and_similarity(size: str | None, similarity: str | None) -> None:
    """Refuse a size or a similarity that there is not: CallError."""
    for option, value, known in (("size", size, SIZES), ("similarity", similarity, SIMILARITIES)):
        if value is not None and value not in known:
            raise CallError(f"the {option} is {' or '.join(known)}, not {value!r}")


def strategy_commands(
    cache: FeatureCache, last_layer: str, cut_layer: str, options: Sequence[str] = ()
) -> dict[str, str]:
    """A command for each strategy, to be pasted into a shell.

    Parameters
    ----------
    cache : FeatureCache
        It says which backbone and weights it was made with, and from which folder.
    last_layer, cut : str
        Layers for the linear and for the truncated probe.
    options : sequence of str
        What every command is given: ``--labels T.csv``, ``--seed 1``.

    Returns
    -------
    dict of str to str
        By strategy.
    """
    made = cache.extractor
    network = ["--backbone", made.backbone]
    weights = str(made.environment.get("weights_file") or made.weights)
    if weights not in (DEFAULT_WEIGHTS, "seedling", "none"):
        network += ["--weights", weights]
    tune = ["classify", "finetune", cache.root or "IMAGES", *options, *network, "--tune", "all"]
    tuned = [*tune, "--cache", str(cache.path), "-o", "tuned.safetensors"]
    return {
        "linear-probe": probe_command(cache, [last_layer], options),
        "truncated-probe": probe_command(cache, [cut_layer], options, "truncated.head"),
        "finetune": shlex.join(tuned),
        "retrain": shlex.join([*tune, "--classifier", "mlp", "-o", "retrained.safetensors"]),
    }


def probe_command(
    cache: FeatureCache,
    layers: Sequence[str],
    options: Sequence[str] = (),
    output: str = "probe.head",
) -> str:
    """The command that trains a head on one layer, or on several joined."""
    words = ["classify", "fit", str(cache.path), *options, "--layer", ",".join(layers)]
    return shlex.join([*words, "-o", output])
