"""Metrics, calibration, baselines and submissions. Works on NumPy arrays and canonical rows, never on models."""
