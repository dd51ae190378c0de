"""A private look at a site's records: figures, spellings, leak suspects."""
