"""Rendered scenes whose paint can carry any texture, for physical camouflage: differentiable without a renderer.

A scene (`scenes`) is a mesh (`vehicles`, `meshes`), a camera, light and a photograph. It is rendered once, by `raster`
and `light` or by mitsuba (`mitsuba_maps`), to `maps`. `compose` then puts textures on it, in torch.
"""
