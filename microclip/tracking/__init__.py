"""Where runs and studies report: their files first, MLflow as a mirror."""
