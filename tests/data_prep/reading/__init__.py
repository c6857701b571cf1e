"""Tests of data_prep/reading."""
