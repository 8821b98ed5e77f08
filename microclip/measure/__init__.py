"""Accuracy, scores, tables: what is read off the runs."""
