"""What is frozen is computed once: prefixes in memory or files, shared by content; batches."""
