"""One's own images: a folder without labels in, an adapted classifier and what it says out."""
