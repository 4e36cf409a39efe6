"""Fast ways to the same numbers, each with the plain way beside it, to which a test holds it equal.

logprobs.py        an output head in chunks, gradients by hand   plain: `plain_token_logprobs`
few_states.py      a product bound by reading its weights        plain: `linear(hidden_ND)`, taken on other devices
response_only.py   the last layer at response positions only     plain: the body without `only_at_positions`
tied_embedding.py  one gradient for a matrix that is used twice  plain: `lookup(tokens_BT)`, taken where none is tied
cache.py           keys and values in memory that is there       plain: transformers' DynamicCache
"""
