"""Adapted classifiers in formats that others read: ONNX, and MLflow's models."""
