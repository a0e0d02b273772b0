"""What a URL is: a folder of images or containers, a file, files by a pattern."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reasons
from featurize.sources.bucket import BucketSource
from featurize.sources.patterns import GlobFilter, check_patterns
from featurize.sources.recognition.kinds import (
    IMAGE,
    LOOKED_FOR,
    FileChoice,
    OpenedSource,
    check_options,
    choose_kind,
    find_kind,
    make_source,
    refuse_unknown,
)
from featurize.sources.recognition.local_paths import check_kinds
from featurize.sources.source import SourceOptions
from featurize.sources.stores.addresses import HTTP, Address
from featurize.sources.stores.expansion import expand_braces, has_stars, split_pattern
from featurize.sources.stores.remote_store import RemoteStore
from featurize.sources.stores.store import StoredFile
from featurize.text import list_first, to_printable

MAX_LOOKED_UP = 32  # names that are asked for one by one; for more, their folder is listed


def open_address(address: Address, options: SourceOptions, former: str = "") -> OpenedSource:
    """Open what a URL leads to.

    A folder is listed once; its source takes what was found.

    Parameters
    ----------
    address : Address
    options : SourceOptions
    former : str
        What a folder was taken for before; see `choose_kind`.

    Returns
    -------
    OpenedSource

    Raises
    ------
    CallError
        If there is nothing, or nothing that is read.
    """
    if split_pattern(address.host)[1] and not address.host.endswith("]"):
        raise CallError(f"{to_printable(address)}: braces and stars stand in names of files alone")
    folder, pattern = split_pattern(address.path)
    if pattern:
        return _open_pattern(RemoteStore(replace(address, path=folder)), pattern, options)
    kind, is_http = find_kind(address.name), address.protocol in HTTP
    if is_http and not kind:
        raise CallError(
            f"{to_printable(address)}: web servers do not list their files; give a file that ends "
            f"in one of {LOOKED_FOR}, or several with braces, as in shard-{{000..063}}.tar"
        )
    if is_http:
        check_kinds([address.name], str(address))
    if kind:
        store = RemoteStore(address.find_parent())
        (file,) = store.stat_files([address.name])
        if isinstance(file, StoredFile):
            kind = check_kinds([file.name], str(address))
            return OpenedSource(make_source(kind, store, [file], True, options))
        if is_http or file.reason != reasons.VANISHED:
            raise CallError(str(file))
    return _open_folder(RemoteStore(address), options, former)


def open_addresses(addresses: Sequence[Address], options: SourceOptions) -> OpenedSource:
    """Open several files of one kind behind URLs.

    Parameters
    ----------
    addresses : sequence of Address
    options : SourceOptions

    Returns
    -------
    OpenedSource

    Raises
    ------
    CallError
        If they lie on several hosts, one is missing, or they are of several kinds.
    """
    first = addresses[0]
    if any(replace(address, path="") != replace(first, path="") for address in addresses):
        raise CallError(
            "several URLs are of one host, with the same credentials; else give a .csv or .jsonl "
            "file of URLs"
        )
    parts = [address.path.split("/")[:-1] for address in addresses]
    n_common = 0
    while all(len(p) > n_common and p[n_common] == parts[0][n_common] for p in parts):
        n_common += 1
    store = RemoteStore(replace(first, path="/".join(parts[0][:n_common])))
    names = {"/".join(address.path.split("/")[n_common:]) for address in addresses}
    return _open_named(store, sorted(names), options)


def _open_named(store: RemoteStore, names: Sequence[str], options: SourceOptions) -> OpenedSource:
    kind = check_kinds(names, str(store.find_address(names[0])))
    if store.address.protocol in HTTP or len(names) <= MAX_LOOKED_UP:
        answers = store.stat_files(names)
    else:
        listed = {file.name: file for file in store.list_files()}
        gone = ImageUnreadableError("", reasons.VANISHED)
        answers = [listed.get(name, gone) for name in names]
    failed = [
        (name, answer)
        for name, answer in zip(names, answers, strict=True)
        if isinstance(answer, ImageUnreadableError)
    ]
    if failed:
        shown = [str(store.find_address(name)) for name, _ in failed]
        other = next((str(a) for _, a in failed if a.reason != reasons.VANISHED), "")
        raise CallError(
            f"{len(failed):,} of {len(names):,} files are missing: {list_first(shown)}"
            if not other
            else f"{len(failed):,} of {len(names):,} files cannot be looked at: {other}"
        )
    files = [answer for answer in answers if isinstance(answer, StoredFile)]
    return OpenedSource(make_source(kind, store, files, False, options))


def _open_pattern(store: RemoteStore, pattern: str, options: SourceOptions) -> OpenedSource:
    names = expand_braces(pattern)
    if not any(has_stars(name) for name in names):
        return _open_named(store, sorted(set(names)), options)
    # Of a whole path: a pattern of one part alone would match in any folder.
    glob = GlobFilter([f"x/{name}" for name in check_patterns(names, "the URL")])
    files = [file for file in store.list_files() if glob.accepts(f"x/{file.name}")]
    shown = to_printable(f"{store.root}/{pattern}")
    if not files:
        raise CallError(f"no file matches {shown}")
    kind = check_kinds([file.name for file in files], f"{store.root}/{files[0].name}")
    return OpenedSource(make_source(kind, store, files, False, options))


def _open_folder(store: RemoteStore, options: SourceOptions, former: str) -> OpenedSource:
    choice, where = FileChoice(options), to_printable(store.root)
    listed = list(store.list_files())
    files = [file for file in listed if choice.accepts(file.name)]
    if listed and not files:
        raise CallError(f"no file in {where} is left by --include and --exclude")
    counts = Counter(find_kind(file.name) for file in files)
    kind, note = choose_kind(counts, where, former)
    if not kind:
        raise refuse_unknown(where, [file.name for file in files])
    if kind == IMAGE:
        check_options(IMAGE, True, options)
        return OpenedSource(BucketSource(store, options, tuple(files)), note)
    chosen = [file for file in files if find_kind(file.name) == kind]
    return OpenedSource(make_source(kind, store, chosen, False, choice.options), note)
