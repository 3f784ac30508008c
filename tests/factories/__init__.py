"""What tests are made of: tiny models, worlds, bandits, servers and summaries that cost milliseconds."""
