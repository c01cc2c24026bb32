"""What every room needs and none owns: errors, argument checks, whole-or-absent files, keyed noise, shapes.

Nothing here knows what an attack or a model is. What only one room needs belongs in that room.
"""
