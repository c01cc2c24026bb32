"""One function for each record draws it as a PNG; `draw` finds the function. Nothing in `reproduce/` imports these."""
