"""Hostile input for every parser of what others write; `make fuzz` runs it for longer."""
