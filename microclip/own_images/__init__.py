"""Your own images: from a folder without labels to an adapted classifier and its predictions."""
