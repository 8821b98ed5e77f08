"""Reporting of runs and studies: their files are the truth, MLflow mirrors them."""
