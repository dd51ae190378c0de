"""How good an adapter is on records whose answers are known: metrics, groups, calibration, page."""
