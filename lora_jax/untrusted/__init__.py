"""What anybody may have written: one gate each for files, JSON, the types of its fields, patterns and programs."""
