"""The documentation site: pages made from the code, the results and the texts of the repository."""
