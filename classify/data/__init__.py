"""Labels, tasks, splits, folds, and features by row."""
