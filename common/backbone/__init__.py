"""The pretrained model as it came: files, hashes, loading, number formats, the frozen prefix."""
