"""What a person looks at. Nothing here needs torch: it reads records and arrays."""
