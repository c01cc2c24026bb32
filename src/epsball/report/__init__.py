"""What a person looks at after an evaluation: the report, the comparison, cards and figures.

Nothing here needs torch: it reads records and arrays.
"""
