"""Which backbone? What pretrained models are worth on a site's records, before any run."""
