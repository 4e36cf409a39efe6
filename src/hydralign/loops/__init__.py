"""The training loops: one config and one readable loop each, over public stages."""
