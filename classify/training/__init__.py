"""Train one head: select its param by validation, then fit it; scikit-learn estimators."""
