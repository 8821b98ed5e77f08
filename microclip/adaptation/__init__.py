"""Self-training: views, pseudo-labels, losses and their optimisation."""
