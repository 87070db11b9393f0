"""Settings: what there is to set, the files it comes from, what cannot be."""
