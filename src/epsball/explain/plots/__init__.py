"""One figure a file, named as the analysis whose record it draws. `registry` says which draws what."""
