"""Readers of mesh files: one module for each format, each with `parse(data, where=...) -> Mesh`, some with `encode(mesh) -> bytes`.

They get bytes and never open files: `metasdf.geometry.io` does that, and gives names to them, checks what comes out, and makes an InputError of
whatever goes wrong. What a file declares is compared with its size before anything is allocated.
"""
