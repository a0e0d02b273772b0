"""Groups of images that belong on one side of a split, proposed from names and features.

Images are linked by features where they are nearer than chance: copies, crops, frames. Rules over
names suggest more; a rule counts only where the images that it links are more alike than other
images of the same folder and class, so that consecutive numbers of unrelated pictures count for
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classify.checks.name_groups import DESCRIPTIONS, NameRule, suggest_groups
from classify.data.features import FeatureRows
from classify.data.near_copies import link_beyond_chance
from classify.data.units import find_copies, link_same_bytes
from classify.evaluation.metrics import wilson_interval
from featurize.cache.reader import FeatureCache
from featurize.text import list_first

MIN_ALIKE = 0.7
"""Share of comparisons with other images that linked ones win, from which a rule counts: its
interval must lie above. Chance is 0.5."""
MAX_JUDGED = 400  # pairs of a rule that are judged
MAX_HINTED = 100  # pairs that are judged where a hint has to be quick
MIN_HINTED = 0.1  # share of the images that are in evident groups
N_OTHERS = 20  # other images that each judged pair is compared with
MIN_PAIRS = 10
CHAIN_QUANTILE = 0.95  # similarity of unlinked pairs that a link of a chain exceeds
FALSE_SHARE = 0.01  # of the links by features that may be by chance
MAX_MULTIPLICATIONS = 2e12  # of features that are compared with each other; minutes
MAX_GROUP_SHARE = 0.25  # of all images; a larger group is no group
COPIES, FEATURES = "copies", "features"


@dataclass(frozen=True, eq=False)
class GroupRule:
    """What one rule found.

    Attributes
    ----------
    name : str
        ``copies``, ``features``, or a key of `classify.checks.name_groups.DESCRIPTIONS`.
    description : str
    n_links, n_images : int
        Pairs that it links, and images in them.
    is_used : bool
        Whether its links count.
    alike : float, or None
        For rules over names: the share of comparisons that linked images win.
    example : list of str
        Paths of two images that it links.
    links : int array of shape (p, 2)
        Positions of the pairs that count.
    """

    name: str
    description: str
    n_links: int
    n_images: int
    is_used: bool
    alike: float | None
    example: list[str]
    links: np.ndarray

    def describe(self) -> str:
        """Return what was found in a sentence.

        Returns
        -------
        str
        """
        found = f"{self.description}: {self.n_images:,} images, such as {list_first(self.example)}"
        if self.alike is None:
            return found
        won = f"linked images are more alike than others in {self.alike:.0%} of comparisons"
        if self.is_used:
            return f"{found}; {won}"
        return f"{found}; not used, as {won}, and chance gives 50%"

    def to_dict(self) -> dict[str, object]:
        """Return the rule as a dict for JSON.

        Returns
        -------
        dict
        """
        return {
            "rule": self.name,
            "images": self.n_images,
            "links": self.n_links,
            "used": self.is_used,
            "alike": self.alike,
            "example": self.example,
        }


def find_group_rules(
    cache: FeatureCache, rows: np.ndarray, stratum: np.ndarray, *, seed: int = 0
) -> list[GroupRule]:
    """Find which images belong together, rule by rule.

    Parameters
    ----------
    cache : FeatureCache
    rows : int array of shape (n,)
        Marked rows, ascending.
    stratum : int array of shape (n,)
        Images that are compared with each other: those of one class, where it is known.
    seed : int
        Of the comparisons.

    Returns
    -------
    list of GroupRule
    """
    paths = cache.paths_of(rows)
    features = FeatureRows.from_cache(cache, (cache.layer().name,), rows)
    features.check_finite(cache)
    similarity = Similarity(features)
    rules = [
        _make_rule(COPIES, "the same bytes", link_same_bytes(cache.column("sha256", rows)), paths),
        _make_rule(FEATURES, "nearer than by chance", _link_by_features(cache, rows), paths),
    ]
    rules = [rule for rule in rules if rule.n_links]
    rules += judge_name_rules(suggest_groups(paths), paths, similarity, stratum, seed)
    return rules


def judge_name_rules(
    suggested: Sequence[NameRule],
    paths: Sequence[str],
    similarity: "Similarity",
    stratum: np.ndarray,
    seed: int = 0,
    max_judged: int = MAX_JUDGED,
) -> list[GroupRule]:
    """Judge rules over names by the features of the images that they link.

    For some linked pairs, the similarity of the pair is compared with that of its first image and
    other images of the same folder and stratum. Where the rule means nothing, the pair wins half of
    these comparisons.

    Parameters
    ----------
    suggested : sequence of NameRule
    paths : sequence of str
        Of the n images.
    similarity : Similarity
    stratum : int array of shape (n,)
    seed : int
    max_judged : int
        Pairs of each rule that are judged.

    Returns
    -------
    list of GroupRule
    """
    rng = np.random.default_rng(seed)
    folders = np.unique([path.rpartition("/")[0] for path in paths], return_inverse=True)[1]
    _, peers = np.unique(np.stack([folders, stratum]), axis=1, return_inverse=True)
    peers = peers.ravel()
    members = np.split(np.argsort(peers, kind="stable"), np.cumsum(np.bincount(peers))[:-1])
    judged = []
    for rule in suggested:
        unit = _number_components(rule.links, len(paths))
        links = rule.links
        if len(links) > max_judged:
            links = links[rng.choice(len(links), max_judged, replace=False)]
        won, drawn, apart = list[float](), 0, list[np.ndarray]()
        for i, j in links:
            # With folders of one class each, the linked image may lie in another folder.
            candidates = members[peers[i]] if peers[i] == peers[j] else np.arange(len(paths))
            others = candidates[rng.integers(0, len(candidates), N_OTHERS)]
            # All of a chain may be one sequence: there its other images are the comparison.
            linked = np.isin(others, [i, j]) if rule.is_chain else unit[others] == unit[i]
            others = others[~linked]
            if not len(others):
                continue
            own, *rest_list = similarity.between(i, np.append(j, others))
            rest = np.array(rest_list)
            won.append(float((rest < own).mean() + (rest == own).mean() / 2))
            apart.append(rest)
            drawn += 1
        if drawn < MIN_PAIRS:
            continue
        alike = float(np.mean(won))
        low, _ = wilson_interval(round(alike * drawn), drawn)
        is_used = low > MIN_ALIKE
        used = rule.links
        if is_used and rule.is_chain:  # a number also follows where a scene ends
            least = float(np.quantile(np.concatenate(apart), CHAIN_QUANTILE))
            used = used[similarity.of_pairs(used) > least]
        judged.append(
            _make_rule(
                rule.name,
                DESCRIPTIONS[rule.name],
                used if is_used else rule.links,
                paths,
                is_used=is_used,
                alike=alike,
            )
        )
    return judged


class Similarity:
    """Cosine similarities of features about their mean, read as they are needed.

    Parameters
    ----------
    features : FeatureRows
        n rows.
    """

    def __init__(self, features: FeatureRows) -> None:
        self._features = features
        sample = np.linspace(0, len(features) - 1, min(2000, len(features))).astype(np.intp)
        X = features.subset(np.unique(sample)).to_array().astype(np.float64)
        self._mean = X.mean(axis=0)
        self._scale = np.sqrt(X.var(axis=0) + X.var(axis=0).mean() + 1e-12)

    def _unit(self, positions: np.ndarray) -> np.ndarray:
        X = self._features.subset(positions).to_array().astype(np.float64)
        X = (X - self._mean) / self._scale
        return np.asarray(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12))

    def between(self, i: int, others: np.ndarray) -> np.ndarray:
        """Compute the similarities of one image and others.

        Parameters
        ----------
        i : int
        others : int array of shape (m,)

        Returns
        -------
        float64 array of shape (m,)
        """
        own = self._unit(np.array([i]))[0]
        return np.asarray(self._unit(others) @ own)

    def of_pairs(self, links: np.ndarray) -> np.ndarray:
        """Compute the similarity of each pair.

        Parameters
        ----------
        links : int array of shape (p, 2)

        Returns
        -------
        float64 array of shape (p,)
        """
        values, size = np.empty(len(links)), 4096
        for start in range(0, len(links), size):
            part = links[start : start + size]
            values[start : start + size] = (self._unit(part[:, 0]) * self._unit(part[:, 1])).sum(
                axis=1
            )
        return values


def _link_by_features(cache: FeatureCache, rows: np.ndarray) -> np.ndarray:
    """Link images that are nearer than by chance: copies, and scenes that many images share."""
    links = [find_copies(cache, rows).near]
    if float(len(rows)) ** 2 * cache.layer().dim <= MAX_MULTIPLICATIONS:
        features = FeatureRows.from_cache(cache, (cache.layer().name,), rows)
        links.append(link_beyond_chance(features, FALSE_SHARE))
    return np.unique(np.sort(np.concatenate(links), axis=1), axis=0)


def _make_rule(
    name: str,
    description: str,
    links: np.ndarray,
    paths: Sequence[str],
    *,
    is_used: bool = True,
    alike: float | None = None,
) -> GroupRule:
    example = [paths[i] for i in links[0]] if len(links) else []
    n_images = len(np.unique(links))
    return GroupRule(name, description, len(links), n_images, is_used, alike, example, links)


def describe_evident_groups(cache: FeatureCache, rows: np.ndarray, y: np.ndarray) -> list[str]:
    """Describe groups that the names of images make evident, quickly: names and a few features.

    Parameters
    ----------
    cache : FeatureCache
    rows : int array of shape (n,)
        Marked rows, ascending.
    y : int array of shape (n,)
        Their classes, or strata.

    Returns
    -------
    list of str
        One sentence with the command that proposes groups, or none.
    """
    paths = cache.paths_of(rows)
    suggested = suggest_groups(paths)
    if not suggested:
        return []
    similarity = Similarity(FeatureRows.from_cache(cache, (cache.layer().name,), rows))
    rules = judge_name_rules(suggested, paths, similarity, y, max_judged=MAX_HINTED)
    evident = [rule for rule in rules if rule.is_used and rule.n_images >= MIN_HINTED * len(rows)]
    if not evident:
        return []
    rule = max(evident, key=lambda rule: rule.n_images)
    return [
        f"{rule.n_images:,} images look like groups, by {rule.description} "
        f"({list_first(rule.example)}), and no groups are given: a split that tears them makes the "
        f"score too good; `classify groups {cache.path} -o groups.csv` proposes groups"
    ]


def merge_rules(rules: Sequence[GroupRule], n: int) -> np.ndarray:
    """Merge the links of the rules that count into groups.

    Parameters
    ----------
    rules : sequence of GroupRule
    n : int
        Number of images.

    Returns
    -------
    int array of shape (n,)
        The group of each image, from 0; images that nothing links have groups of their own. A rule
        that would bring a quarter of all images into one group is left out.
    """
    links = np.zeros((0, 2), np.int64)
    for rule in rules:
        if not rule.is_used:
            continue
        together = np.concatenate([links, rule.links])
        if np.bincount(_number_components(together, n)).max(initial=0) <= MAX_GROUP_SHARE * n + 1:
            links = together
    return _number_components(links, n)


def _number_components(links: np.ndarray, n: int) -> np.ndarray:
    graph = coo_array((np.ones(len(links), bool), links.T), (n, n))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers.astype(np.intp)
