"""Tables of what safety researchers measure of one policy: depth, at least one of N, durability, flips; pure."""
