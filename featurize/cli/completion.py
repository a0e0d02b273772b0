"""What a shell offers for the values of options: names, and what the files named so far hold.

A shell asks on every press of the key, so nothing here imports torch. Words out of files are
offered only if no shell gives a character of them a meaning. What cannot be found out is left out.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import typer

MAX_WORDS = 200
_PLAIN_WORD = re.compile(r"[\w.+@-]+", re.ASCII)

ListWords = Callable[[typer.Context], Iterable[str]]
Complete = Callable[[typer.Context, str], list[str]]


def complete_word(list_words: ListWords) -> Complete:
    """Make the completion of an option that takes one word.

    Parameters
    ----------
    list_words : callable
        Takes the context, with the options given so far, and returns the words.

    Returns
    -------
    callable
        As Typer's ``autocompletion`` takes it.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return [word for word in _list_plain(list_words, ctx) if word.startswith(incomplete)]

    return complete


def complete_list(list_words: ListWords) -> Complete:
    """Make the completion of an option that takes words separated by commas.

    Parameters
    ----------
    list_words : callable
        As for `complete_word`.

    Returns
    -------
    callable
        As Typer's ``autocompletion`` takes it. Words that are there already are not offered.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        words = _list_plain(list_words, ctx)
        return [
            f"{before}{comma}{word}"
            for word in words
            if word.startswith(last) and word not in given
        ]

    return complete


def _list_plain(list_words: ListWords, ctx: typer.Context) -> list[str]:
    words: list[str] = []
    with suppress(Exception):
        words += list_words(ctx)
    return [word for word in words if _PLAIN_WORD.fullmatch(word)][:MAX_WORDS]


def complete_choice(*words: str) -> Complete:
    """Make the completion of an option that takes one of a few words.

    Parameters
    ----------
    *words : str
        The words.

    Returns
    -------
    callable
        As Typer's ``autocompletion`` takes it.
    """
    return complete_word(lambda _: words)


def get_option(ctx: typer.Context, name: str) -> Any:
    """Get a value that stands on the command line already.

    Parameters
    ----------
    ctx : Context
        That of the verb.
    name : str
        The parameter's name in the verb's function.

    Returns
    -------
    object
        The value, the first of several; None if it is not given.
    """
    value = ctx.params.get(name)
    return next(iter(value), None) if isinstance(value, list | tuple) else value


def list_backbones(ctx: typer.Context) -> list[str]:
    """List the backbones that need no search: torchvision's, ``seedling`` and ``lite0``.

    Parameters
    ----------
    ctx : Context
        That of the verb.

    Returns
    -------
    list of str
        Sorted.
    """
    from featurize.backbones.families import EMBEDDING_DIMS
    from featurize.backbones.names import LITE

    return sorted([*EMBEDDING_DIMS, LITE])


def list_stages(ctx: typer.Context) -> list[str]:
    """List ``last``, ``auto`` and the ends of the stages of the backbone named so far.

    Parameters
    ----------
    ctx : Context
        That of the verb.

    Returns
    -------
    list of str
    """
    from featurize.backbones.families import DEFAULT_BACKBONE, find_family

    family = find_family(get_option(ctx, "backbone") or DEFAULT_BACKBONE)
    return ["last", "auto", *(family.stages if family else ())]


def list_cached_layers(ctx: typer.Context) -> list[str]:
    """List the layers of the cache named so far.

    Parameters
    ----------
    ctx : Context
        That of the verb.

    Returns
    -------
    list of str
    """
    from featurize.cache.reader import FeatureCache

    # Where an option still lacks its value, arguments before it are not yet given their names.
    return list(FeatureCache(get_option(ctx, "cache") or ctx.args[0]).layers)


def list_engines(ctx: typer.Context) -> list[str]:
    """List the engines.

    Parameters
    ----------
    ctx : Context
        That of the verb.

    Returns
    -------
    list of str
    """
    from featurize.engines.base import ENGINES

    return list(ENGINES)
