"""How good predictions are: metrics with intervals, calibration. Knows arrays only."""
