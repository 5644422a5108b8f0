"""Looking at models: the export gate that a model must pass, and the auditor of any checkpoint."""
