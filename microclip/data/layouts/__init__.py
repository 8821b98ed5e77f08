"""One module a layout: how a dataset lies on disk, read into a `Listing`."""
