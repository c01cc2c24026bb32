"""One hypothesis a file: it measures, and returns a record with the sentence that answers the hypothesis."""
