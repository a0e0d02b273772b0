"""Train one head: its regularisation by validation, then the head; and the scikit-learn estimators."""
