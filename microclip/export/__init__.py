"""Export adapted classifiers to other formats: ONNX and MLflow's models."""
