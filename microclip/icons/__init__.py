"""How the icon benchmark and icon-clip, the default backbone, were made."""
