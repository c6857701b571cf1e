"""The tests, a package so that spawned ranks can import the functions they are asked to run."""
