"""Commands on finished models: merged into one folder, asked for scores, published with a card."""
