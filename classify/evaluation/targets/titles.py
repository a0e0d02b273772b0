"""What metrics are called in tables and pages."""

TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "macro_f1": "macro F1", "micro_f1": "micro F1"}


def format_metric_name(name: str) -> str:
    """Return the title of a metric.

    Parameters
    ----------
    name : str
        As in `classify.evaluation.targets.metrics.METRICS`.

    Returns
    -------
    str
        ``MAE``, or the words of the name.
    """
    return TITLES.get(name, name.replace("_", " "))
