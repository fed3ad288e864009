"""Readers of raw data sets, a module for every family of formats."""
