"""The forms of published review files, one file each."""
