"""The icon benchmark and icon-clip: the recipe behind the embedded default."""
