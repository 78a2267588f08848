"""Shapes without networks: images, meshes, distances and surfaces. Nothing here imports torch models or data sets."""
