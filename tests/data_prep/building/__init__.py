"""Tests of data_prep/building."""
