"""Small copies of public datasets in their true layouts: each module has `CLASSES` and `build`."""
