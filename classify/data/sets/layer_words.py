"""The words of a comparison's layer option, over one cache or a set of caches."""

from collections.abc import Iterator, Sequence

from classify.data.features import resolve_layer_sets
from classify.data.sets.cache_set import CacheSet
from classify.errors import CallError
from featurize.cache.reader import FeatureCache
from featurize.errors import UnknownLayerError
from featurize.layer_spec import POOLS, LayerSpec
from featurize.text import did_you_mean

EACH, JOINED, LAST = "each", "joined", "last"
DEFAULT_LAYERS = f"{EACH},{JOINED}"


def list_layer_sets(cache: FeatureCache, layers: str | Sequence[str]) -> list[tuple[str, ...]]:
    """List the sets of layers that a comparison goes through.

    Parameters
    ----------
    cache : FeatureCache
    layers : str or sequence of str
        Over one cache as `classify.data.features.resolve_layer_sets` takes it. Over a `CacheSet`
        of ``each`` (every layer alone), ``joined`` (for each cache all of its layers), and layers
        joined by ``+``. A layer is ``CACHE:LAYER``, where the text before the first colon is a
        cache if it is the short name of one. Without a cache, the layers of every cache that has
        them are meant. ``last`` is a cache's deepest layer. ``each,joined`` adds the last layers
        of all caches joined.

    Returns
    -------
    list of tuple of str
        Each set once; over a `CacheSet` of names as ``CACHE:LAYER``.

    Raises
    ------
    UnknownLayerError
        If a cache lacks a layer.
    CallError
        If there is no such cache, a layer is named twice in a set, or only some layers of a set
        have a cache.
    """
    if not isinstance(cache, CacheSet):
        return resolve_layer_sets(cache, layers)
    words = [word.strip() for word in (layers.split(",") if isinstance(layers, str) else layers)]
    sets = [layer_set for word in words for layer_set in _resolve_word(cache, word)]
    if ",".join(words) == DEFAULT_LAYERS:
        sets.append(cache.last_layers)
    return list(dict.fromkeys(sets))


def _resolve_word(caches: CacheSet, word: str) -> Iterator[tuple[str, ...]]:
    if word == EACH:
        yield from ((name,) for name in caches.layers)
        return
    if word == JOINED:
        yield from caches.layers_by_cache.values()
        return
    parts = [_split_cache(caches, part.strip()) for part in word.split("+")]
    qualified = [(name, layer) for name, layer in parts if name is not None]
    if len(qualified) == len(parts):
        yield _join_once([_find_layer(caches, *part) for part in qualified])
    elif qualified:
        raise CallError(
            f"{word!r} names the cache of some layers only; write CACHE:LAYER for each, with a "
            f"cache of {', '.join(caches.caches)}"
        )
    else:
        yield from _resolve_everywhere(caches, [layer for _, layer in parts])


def _resolve_everywhere(caches: CacheSet, layers: list[str]) -> Iterator[tuple[str, ...]]:
    """Join layers within every cache that has all of them."""
    problems: list[UnknownLayerError] = []
    for name in caches.caches:
        try:
            yield _join_once([_find_layer(caches, name, layer) for layer in layers])
        except UnknownLayerError as problem:
            problems.append(problem)
    if len(problems) == len(caches.caches):
        raise problems[0]


def _split_cache(caches: CacheSet, text: str) -> tuple[str | None, str]:
    """Split ``CACHE:LAYER``; without a cache the text is a layer, maybe with a pool."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in caches.caches:
        return prefix, rest
    if colon and rest not in POOLS:
        raise CallError(
            f"{text!r}: there is no cache {prefix!r}{did_you_mean(prefix, caches.caches)}; "
            f"there are {', '.join(caches.caches)}"
        )
    return None, text


def _find_layer(caches: CacheSet, name: str, text: str) -> str:
    """Return a layer of one cache as ``CACHE:LAYER``."""
    cache = caches.caches[name]
    if text == LAST and LAST not in cache.layers:
        return f"{name}:{cache.layer().name}"
    if text not in cache.layers and ":" in text:
        text = LayerSpec.parse(text).key
    return f"{name}:{cache.layer(text).name}"


def _join_once(layers: list[str]) -> tuple[str, ...]:
    if len(set(layers)) < len(layers):
        raise CallError(f"layers to join are named once each, not {', '.join(layers)}")
    return tuple(layers)
