"""What an attack works on: the rows, the model's outputs and losses, the model as an objective, the black box.

An attack sees a `Task` and a `Point`, never a model; signs and success live here and nowhere else.
"""
