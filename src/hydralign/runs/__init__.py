"""A recipe as an ordered list of sections: what each reads, writes, plans and refuses; the dry run."""
