"""What people prefer: records, readers and writers for every common format, checks."""
