"""Complete examples: a Flower app with a defence, and parts of one's own."""
