"""Data sets: the store on disk, readers of sources, and what turns one into the other."""
