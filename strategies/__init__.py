"""Flower server side: a defence wrapped around any Flower strategy."""
