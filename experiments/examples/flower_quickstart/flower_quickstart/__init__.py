"""A Flower app as people write it: a network, its data, a client and a server."""
