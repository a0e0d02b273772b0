"""Train one head: its param by validation, then the head; and scikit-learn estimators."""
