"""AdamW, in the kinds that memory allows."""
