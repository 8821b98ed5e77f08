"""The declarations of the methods, one file each: what planning a study needs to know."""
