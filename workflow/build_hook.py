"""Put the files that pyproject.toml lists as `shipped` into wheels, below `microclip/shipped`.

A hook, as Hatchling's own `force-include` copies into editable installs too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):
    """Adds the files; a source archive has them where they are in the project."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, unless the wheel is that of an editable install."""
        if version == "editable":
            return
        place = "microclip/shipped/" if self.target_name == "wheel" else ""
        build_data["force_include"].update(
            {str(Path(self.root, name)): place + name for name in self.config["shipped"]}
        )
