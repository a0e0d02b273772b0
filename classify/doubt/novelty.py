"""Novelty: how unlike an image is to all that a head was trained on.

Three signs are put together, each in units of its spread on images that were held out:

- the entropy of the predicted probabilities, which sees new classes that are like known ones;
- the relative Mahalanobis distance: of the features to the nearest class mean, less that to the
  mean of all (J. Ren et al., 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD
  Detection", arXiv 2106.09022), which sees them too;
- the Mahalanobis distance itself (K. Lee et al., 2018, "A Simple Unified Framework for Detecting
  Out-of-Distribution Samples and Adversarial Attacks", NeurIPS), as far as it goes beyond what
  known images have. It sees images of another kind, of which heads are often sure. Nearer than that
  it is mostly noise, and counts nothing.

Weights and shrinkage were chosen on other draws than `benchmarks/doubt.py` reports, which compares
the sum with the largest probability alone.
"""

from dataclasses import dataclass

import numpy as np

from classify.doubt.conformal import conformal_quantile

FALSE_ALARMS = 0.05
"""Share of new images of known classes that are taken for unknown."""
SHRINKAGE = 0.3  # of a covariance towards one variance for all directions
RELATIVE_WEIGHT = 0.5  # of the relative distance beside the entropy
FAR_ONSET, FAR_WEIGHT = 2.0, 3.0  # of the distance: counts beyond so many standard deviations
MAX_DIRECTIONS = 256  # that are kept; the distance along all others has one variance
MAX_VALUES = 2_000_000  # distances of images to classes at a time


@dataclass(frozen=True, eq=False)
class FeatureSpread:
    """Class means and covariances of prepared training features, in few directions.

    Attributes
    ----------
    mean : float32 array of shape (D,)
        Of all training images.
    inverse_scale : float32 array of shape (D,)
    vectors : float32 array of shape (D, R)
        Principal directions of the scaled features, of length 1.
    variances : float32 array of shape (R,)
        Shrunk variance of all images along each direction.
    class_means : float32 array of shape (K, R)
        Along the directions, less the mean of all.
    precision : float32 array of shape (R, R)
        Inverse of the shrunk covariance within classes.
    rest : (float, float)
        Variance along all other directions: within classes, and of all images.
    """

    mean: np.ndarray
    inverse_scale: np.ndarray
    vectors: np.ndarray
    variances: np.ndarray
    class_means: np.ndarray
    precision: np.ndarray
    rest: tuple[float, float]

    @classmethod
    def from_statistics(
        cls,
        basis: tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        class_count: np.ndarray,
        class_total: np.ndarray,
    ) -> "FeatureSpread":
        """Take the spread from statistics of the training features.

        Parameters
        ----------
        basis : (float, arrays of shape (D,), (D,), (D, R) and (R,))
            Count, mean, scale, vectors and values of a `classify.solvers.gram.PrincipalBasis`.
        class_count : float64 array of shape (K,)
            Images of each class.
        class_total : float64 array of shape (K, D)
            Sum of the features of each class.

        Returns
        -------
        FeatureSpread
        """
        count, mean, scale, vectors, values = basis
        dim, variances = len(mean), values / count
        top = np.argsort(-variances, kind="stable")[:MAX_DIRECTIONS]
        present = class_count > 0
        class_count, class_total = class_count[present], class_total[present]
        class_means = ((class_total / class_count[:, None] - mean) / scale) @ vectors
        between = class_means * np.sqrt(class_count / count)[:, None]
        total_average = max(float(variances.sum()) / dim, 1e-12)
        within_average = max(total_average - float((between**2).sum()) / dim, 1e-12)
        n_others = dim - len(top)
        others = float(np.delete(variances, top).sum()) / n_others if n_others else 0.0
        within = (1 - SHRINKAGE) * (np.diag(variances[top]) - between[:, top].T @ between[:, top])
        within += SHRINKAGE * within_average * np.eye(len(top))
        shrunk = (1 - SHRINKAGE) * variances[top] + SHRINKAGE * total_average
        others *= 1 - SHRINKAGE
        # float32, as a file has them, so that a loaded head says the same.
        return cls(
            mean=mean.astype(np.float32),
            inverse_scale=(1 / scale).astype(np.float32),
            vectors=vectors[:, top].astype(np.float32),
            variances=shrunk.astype(np.float32),
            class_means=class_means[:, top].astype(np.float32),
            precision=np.linalg.inv(within).astype(np.float32),
            rest=(others + SHRINKAGE * within_average, others + SHRINKAGE * total_average),
        )

    def distances(self, X: np.ndarray) -> np.ndarray:
        """Compute squared Mahalanobis distances.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.

        Returns
        -------
        float64 array of shape (n, 2)
            To the nearest class mean, by the covariance within classes; and this less the distance
            to the mean of all images, by theirs.
        """
        scaled = (X.astype(np.float64) - self.mean) * self.inverse_scale
        along = scaled @ self.vectors.astype(np.float64)
        other = np.maximum((scaled**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        precision, means = self.precision.astype(np.float64), self.class_means.astype(np.float64)
        projected = along @ precision
        own = (projected * along).sum(axis=1)
        means_projected = (means @ precision * means).sum(axis=1)
        nearest, size = np.empty(len(X)), max(1, MAX_VALUES // len(means))
        for start in range(0, len(X), size):
            part = slice(start, start + size)
            to_classes = means_projected - 2 * projected[part] @ means.T
            nearest[part] = to_classes.min(axis=1)
        within = own + nearest + other / self.rest[0]
        overall = (along**2 / self.variances).sum(axis=1) + other / self.rest[1]
        return np.stack([within, within - overall], axis=1)


def entropies(proba: np.ndarray) -> np.ndarray:
    """Compute the entropy of probabilities.

    Parameters
    ----------
    proba : float array of shape (n, K)

    Returns
    -------
    float64 array of shape (n,)
        In nats.
    """
    safe = np.maximum(proba, 1e-300)
    return np.asarray(-(proba * np.log(safe)).sum(axis=1))


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a sign on held-out images.

    Attributes
    ----------
    mean, std : float
    """

    mean: float
    std: float

    @classmethod
    def from_values(cls, values: np.ndarray) -> "Scale":
        """Measure the scale of a sign.

        Parameters
        ----------
        values : float array of shape (m,)

        Returns
        -------
        Scale
            With the deviation 1 where all values are the same.
        """
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Return a sign in units of its deviation.

        Parameters
        ----------
        values : float array of shape (n,)

        Returns
        -------
        float64 array of shape (n,)
        """
        return np.asarray((values - self.mean) / self.std)


@dataclass(frozen=True)
class SignScales:
    """The scales of the three signs.

    Attributes
    ----------
    entropy, distance, relative : Scale
        Of the entropy, the distance to the nearest class mean, and the relative distance.
    """

    entropy: Scale
    distance: Scale
    relative: Scale

    def combine(self, entropy: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Put the signs together.

        Parameters
        ----------
        entropy : float array of shape (n,)
        distances : float array of shape (n, 2)
            As `FeatureSpread.distances` returns them.

        Returns
        -------
        float64 array of shape (n,)
            Higher is less like the training images.
        """
        distance, relative = distances.T
        near = self.entropy.standardise(entropy)
        near = near + RELATIVE_WEIGHT * self.relative.standardise(relative)
        beyond = np.maximum(self.distance.standardise(distance) - FAR_ONSET, 0)
        return np.asarray(near + FAR_WEIGHT * beyond)


@dataclass(frozen=True, eq=False)
class Novelty:
    """How to tell images that are unlike all that a head was trained on.

    Attributes
    ----------
    spread : FeatureSpread
    scales : SignScales
    threshold : float
        The score above which an image is taken for unknown.
    false_alarms : float
        The share of new images of known classes above it.
    """

    spread: FeatureSpread
    scales: SignScales
    threshold: float
    false_alarms: float = FALSE_ALARMS

    def scores(self, X: np.ndarray, proba: np.ndarray) -> np.ndarray:
        """Score images; higher is less like the training images.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.
        proba : float array of shape (n, K)
            Predicted probabilities.

        Returns
        -------
        float64 array of shape (n,)
        """
        return self.scales.combine(entropies(proba), self.spread.distances(X))


def fit_novelty(
    spread: FeatureSpread, distances: np.ndarray, proba: np.ndarray, unit: np.ndarray
) -> Novelty | None:
    """Fit the scales and the threshold on held-out images.

    Parameters
    ----------
    spread : FeatureSpread
        Of all training images.
    distances : float array of shape (m, 2)
        Distances of held-out images, each to the training images of its fold.
    proba : float array of shape (m, K)
        Their predicted probabilities.
    unit : int array of shape (m,)
        Images with the same number belong together.

    Returns
    -------
    Novelty, or None
        None where there are too few units to say what 5 % of false alarms are.
    """
    entropy = entropies(proba)
    distance, relative = distances.T
    scales = SignScales(*map(Scale.from_values, (entropy, distance, relative)))
    threshold = conformal_quantile(scales.combine(entropy, distances), unit, 1 - FALSE_ALARMS)
    return None if threshold is None else Novelty(spread, scales, threshold)
