"""The methods: one file each; `load_method(name)` finds them by file name."""
