"""One module per layout: how a dataset is laid out on disk, read into a `Listing`."""
