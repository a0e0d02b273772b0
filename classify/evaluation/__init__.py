"""Quality of predictions: metrics with intervals, and calibration. Works on arrays only."""
