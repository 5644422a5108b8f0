"""Egress: may this model leave? A policy, the checks it asks for, a decision, and its record.

Who decides about exporting a model (a hospital, a trusted research environment) states a policy;
:mod:`fl_sim.egress.releasing` carries it out and writes a folder that may leave, or nothing.
"""
